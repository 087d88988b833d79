"""A cluster in one program: it serves a model, takes part as a second machine, asks a question, and leaves.

python examples/serve_and_join.py [MODEL]

On two machines the first half runs on one and the second half on the other. Here both halves run on this machine, the
second one in a process of its own with a configuration folder of its own, as another machine would have.
"""

import asyncio
import os
import sys
import tempfile

import edgepp


async def serve(model: str, folder: str) -> None:
    """Serve, let the other half join by a token, and ask once both run layers."""
    os.environ["EDGEPP_HOME"] = f"{folder}/one"
    async with edgepp.serve(model, listen="127.0.0.1:0", threads=1, memory="1GB") as cluster:
        environment = os.environ | {
            "EDGEPP_HOME": f"{folder}/two",
            "EDGEPP_NAME": "two",
            "EDGEPP_TOKEN": await cluster.token(),
        }
        command = (sys.executable, __file__, "join", cluster.address)
        other = await asyncio.create_subprocess_exec(*command, env=environment)
        try:
            async for event in cluster.events():
                print(f"one: {event}")
                if isinstance(event, edgepp.events.PipelineOpened) and len(cluster.status["stages"]) == 2:
                    break
            async with edgepp.connect(cluster.address) as connection:
                question = connection.ask("Name a river in Europe.", edgepp.GenerateOptions(max_tokens=30))
                print((await question.whole()).text.strip())
        finally:
            other.terminate()
            await other.wait()


async def join(address: str) -> None:
    """Take part until the node runs layers no more."""
    async with edgepp.join(peers=[address], threads=1, memory="1GB") as node:
        async for event in node.events():
            print(f"two: {event}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["join"]:
        asyncio.run(join(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(serve(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m", folder))
