"""Ask the cluster of this machine: one streamed answer, and one answer that must be yes or no.

python examples/cluster.py
"""

import asyncio

import edgepp


async def main() -> None:
    """Stream one answer, then await a constrained one."""
    async with edgepp.connect() as cluster:
        async for text in cluster.ask("Why is the sky blue?", edgepp.GenerateOptions(max_tokens=60)):
            print(text, end="", flush=True)
        yes_or_no = edgepp.GenerateOptions(constraint=edgepp.Constraint("regex", "yes|no"))
        answer = await cluster.ask("Is the sky blue? Answer yes or no.", yes_or_no).whole()
        print(f"\nIs it? {answer.text}")


asyncio.run(main())
