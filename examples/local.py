"""Ask a model on this machine, split over two stage processes: three questions at once, and three answers to one.

python examples/local.py [MODEL]
"""

import asyncio
import sys

import edgepp

QUESTIONS = ("Name a river in Europe.", "What is 7 times 8?", "Say hello in French.")


async def main(model: str) -> None:
    """Ask everything at once, and print each answer when all are complete."""
    options = edgepp.GenerateOptions(max_tokens=40)
    sampled = edgepp.GenerateOptions(max_tokens=12, sampling=edgepp.SamplingOptions(temperature=1.0, seed=1))
    async with edgepp.Engine(model, stages=2) as engine:
        answers = await asyncio.gather(*(engine.ask(question, options).whole() for question in QUESTIONS))
        choices = engine.choices("Think of a name for a small, friendly cat.", 3, sampled)
        await asyncio.gather(*(choice.whole() for choice in choices))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n  {answer.text.strip()}\n  {len(answer.token_ids)} tokens, {answer.finish_reason}")
    print(*(f"A choice: {choice.text.strip()}" for choice in choices), sep="\n")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"))
