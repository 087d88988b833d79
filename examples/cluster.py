"""A question to this machine's cluster, printed as the answer comes, and a choice that it is held to.

python examples/cluster.py
"""

import asyncio

import edgepp


async def main() -> None:
    """Ask twice."""
    async with edgepp.connect() as cluster:
        async for text in cluster.ask("Why is the sky blue?", edgepp.GenerateOptions(max_tokens=60)):
            print(text, end="", flush=True)
        yes_or_no = edgepp.GenerateOptions(constraint=edgepp.Constraint("regex", "yes|no"))
        answer = await cluster.ask("Is the sky blue? Answer yes or no.", yes_or_no).whole()
        print(f"\nIs it? {answer.text}")


asyncio.run(main())
