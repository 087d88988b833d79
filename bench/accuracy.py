"""Difference of the ONNX backend's numbers from MLX's in float32, over a fixed English text and some greedy answers.

    python -m bench.accuracy --model smollm2-135m --tokens 2048

The text is ``bench/text.txt`` and then the repository's licence, cut into windows of 512 tokens that are separate
sequences. Over all positions: ``perplexity``, exp of the mean loss; ``kl``, the mean of KL(mlx || onnx) in nats;
``top1``, the share of positions at which both rank the same token first; ``mean_diff`` and ``max_diff`` of the logits.
Over the greedy answers, in tokens: ``free``, equal leading tokens when each side continues its own answer; ``forced``,
equal tokens when both sides read MLX's answer. Of the cache: ``kv_bytes``, bytes of keys and values per position.
``tokens_per_s`` is the decode rate of one sequence after 256 positions, on the device that the table names.
``--kv-bits 8,4`` adds rows with keys and values in 8 and in 4 bits. On a CPU MLX is slow at prompts, so the default run
takes some minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from bench.toolkit.figures import table
from bench.toolkit.script import Result, ScriptArguments, count, counts, say, script
from edgepp.backend.base import KV_BITS, BackendOptions
from edgepp.benchmark.accuracy import SLICE, LocalModel, LogitDifference, leading, slices
from edgepp.errors import ModelError, UsageError
from edgepp.model.fetch import fetch
from edgepp.model.text.tokenizer import Tokenizer
from edgepp.model.weights.checkpoint import Checkpoint

PROMPTS = (
    "The capital of France is",
    "Water boils at one hundred degrees because",
    "Once upon a time, in a village by the sea, there lived",
    "To sort a list of numbers in Python, you can",
    "The three most important things to know about the moon are",
    "Dear Sir or Madam, I am writing to you about",
)
HEADINGS = ("perplexity", "kl", "top1", "mean_diff", "max_diff", "free", "forced", "kv_bytes", "tokens_per_s")
FILLED, TIMED = 256, 32
"""Positions before the timed decode steps, and number of timed steps."""


def cost(model: LocalModel) -> dict[str, float]:
    """``kv_bytes`` and ``tokens_per_s``, which do not depend on the text."""
    model.open()
    for _ in range(0, FILLED, SLICE):
        model.extend([0] * SLICE)
    kv_bytes = model.kv_bytes / FILLED
    steps_s = []
    for _ in range(TIMED):
        began = time.perf_counter()
        model.logits([0])
        steps_s.append(time.perf_counter() - began)
    return {"kv_bytes": kv_bytes, "tokens_per_s": 1 / median(steps_s)}


def text_ids(tokenizer: Tokenizer, tokens: int) -> list[int]:
    """The first ``tokens`` tokens of the text.

    Raises:
        UsageError: the text is shorter.
    """
    bench = Path(__file__).resolve().parent
    text = "\n\n".join((bench / name).read_text(encoding="utf-8") for name in ("text.txt", "../LICENSE"))
    ids = tokenizer.encode(text)
    if not SLICE < tokens <= len(ids):
        raise UsageError(f"the text has {len(ids)} tokens; --tokens must be between {SLICE + 1} and that")
    return ids[:tokens]


def over_text(mlx: LocalModel, others: Mapping[str, LocalModel], ids: Sequence[int]) -> dict[str, dict[str, float]]:
    """``LogitDifference`` of each model from ``mlx`` over the text, and of ``mlx`` from itself."""
    differences = {name: LogitDifference() for name in ("mlx", *others)}
    began, done = time.perf_counter(), 0
    for begins, tokens, following in slices(ids):
        for model in (mlx, *others.values()) if begins else ():
            model.open()
        reference = mlx.logits(tokens)
        differences["mlx"].add(reference, reference, following)
        for name, model in others.items():
            differences[name].add(reference, model.logits(tokens), following)
        done += len(tokens)
        left_s = (time.perf_counter() - began) / done * (len(ids) - 1 - done)
        say(f"text: {done} of {len(ids) - 1} tokens, {left_s:.0f} s left")
    return {name: difference.result() for name, difference in differences.items()}


def over_answers(
    mlx: LocalModel, others: Mapping[str, LocalModel], prompts: Sequence[Sequence[int]], length: int
) -> dict[str, dict[str, int]]:
    """``free`` and ``forced`` agreement of each model with ``mlx``, in tokens; ``length`` tokens per prompt."""
    totals = {name: {"free": 0, "forced": 0} for name in others}
    for turn, prompt in enumerate(prompts, 1):
        expected = mlx.answer(prompt, length=length)
        for name, model in others.items():
            totals[name]["free"] += leading(expected, model.answer(prompt, length=length))
            totals[name]["forced"] += equal(expected, model.answer(prompt, expected, length=length))
        say(f"answers: {turn} of {len(prompts)}")
    return totals


def equal(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of positions at which both have the same token."""
    return sum(x == y for x, y in zip(a, b, strict=True))


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    yield f"{result['model']}: {result['text_tokens']} tokens of text, {result['answer_tokens']} of greedy answers"
    rows = [
        (name, *(f"{row[heading]:.5g}" if heading in row else "" for heading in HEADINGS))
        for name, row in result["models"].items()
    ]
    yield from table(("", *HEADINGS), rows)
    devices = ", ".join(f"{backend} on {device}" for backend, device in result["devices"].items())
    yield f"tokens_per_s of {devices}; Metal's differ from a CPU's also in their order"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "threads", gen=64)
    parser.add_argument("--tokens", type=count, default=2048, help="tokens of text (%(default)s)")
    parser.add_argument("--kv-bits", type=kv_bits, default=(), metavar="N,...", help="also caches of 8, 4 or 8,4 bits")
    return parser.parse_args()


def kv_bits(text: str) -> tuple[int, ...]:
    """Bits of keys and values, separated by commas."""
    bits = tuple(counts(text))
    if not set(bits) <= set(KV_BITS):
        raise argparse.ArgumentTypeError(f"'{text}' must be some of {KV_BITS}")
    return bits


def compared_models(checkpoint: Checkpoint, threads: int, bits: Sequence[int]) -> Iterator[tuple[str, LocalModel]]:
    """Models to compare with MLX in float32, by name; unsupported caches are left out with a message."""
    for keep in (None, *bits):
        for name, exact in (("onnx", False), ("onnx exact", True), ("mlx", True)):
            if keep is None and name == "mlx":
                continue
            try:
                options = BackendOptions(threads=threads, exact=exact, kv_bits=keep)
                model = LocalModel(checkpoint, options, [name.split()[0]])
            except ModelError as error:
                say(f"{name} with {keep} bits: {error}")
            else:
                yield name if keep is None else f"{name} kv{keep}", model


def measured(options: argparse.Namespace) -> Result:
    """Every model over the text and the answers."""
    checkpoint = Checkpoint.open(fetch(options.model))
    tokenizer = Tokenizer.load(checkpoint.path)
    ids = text_ids(tokenizer, options.tokens)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    mlx = LocalModel(checkpoint, BackendOptions(threads=options.threads, exact=True), ["mlx"])
    others = dict(compared_models(checkpoint, options.threads, options.kv_bits))
    text = over_text(mlx, others, ids)
    answers = over_answers(mlx, others, prompts, options.gen)
    costs = {name: cost(model) for name, model in {"mlx": mlx, **others}.items()}
    return {
        "text_tokens": len(ids) - 1,
        "answer_tokens": len(prompts) * options.gen,
        "models": {name: row | answers.get(name, {}) | costs[name] for name, row in text.items()},
        "devices": {"mlx": mlx.device, "onnx": "cpu"},
    }


if __name__ == "__main__":
    script("accuracy", parse, measured, lines)
