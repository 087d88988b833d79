"""Three questions at once to a model on this machine, split over two stage processes.

python examples/local.py [MODEL]
"""

import asyncio
import sys

import edgepp

QUESTIONS = ("Name a river in Europe.", "What is 7 times 8?", "Say hello in French.")


async def main(model: str) -> None:
    """Ask all of them, and print each answer when it is whole."""
    options = edgepp.GenerateOptions(max_tokens=40)
    async with edgepp.Engine(model, stages=2) as engine:
        answers = await asyncio.gather(*(engine.ask(question, options).whole() for question in QUESTIONS))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n  {answer.text.strip()}\n  {len(answer.token_ids)} tokens, {answer.finish_reason}")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"))
