"""A cluster in one program: serve a model, join as a second machine, ask a question, and stop.

python examples/serve_and_join.py [MODEL]

On two machines, ``serve`` runs on one and ``join`` on the other. In this example both run on this machine; ``join``
runs in a second process with its own configuration folder, as on another machine.
"""

import asyncio
import os
import sys
import tempfile

import edgepp


async def serve(model: str, folder: str) -> None:
    """Serve, start a process that joins by a token, and ask when both run layers."""
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
    """Run a node of the cluster until the process ends."""
    async with edgepp.join(peers=[address], threads=1, memory="1GB") as node:
        async for event in node.events():
            print(f"two: {event}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["join"]:
        asyncio.run(join(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(serve(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m", folder))
