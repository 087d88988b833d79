"""Checks of arithmetic: float32 tokens against mlx-lm, and default accuracy against float32."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from edgepp import backend
from edgepp.backend.base import BackendOptions
from edgepp.benchmark import prompts
from edgepp.benchmark.accuracy import SLICE, LocalModel, LogitDifference, leading, slices
from edgepp.errors import EdgeppError
from edgepp.layer_range import LayerRange
from edgepp.model.fetch import fetch
from edgepp.model.shape import shape_from_config
from edgepp.model.text.tokenizer import Tokenizer
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.node.memory import usable_memory
from edgepp.python_api.cancellable_thread import run_in_thread
from edgepp.selftest import reference
from edgepp.selftest.result import CheckResult
from edgepp.selftest.setting import Setting
from edgepp.stage_process.compute_policy import ComputePolicy

PROMPT = "The three most important things to know about the moon are"
TOKENS = 24
TEXT_TOKENS = 1025
MAX_PERPLEXITY_CHANGE = 0.01
"""Largest share by which the perplexity of default accuracy may differ from float32's (README)."""


_OTHER_WEIGHTS = (
    "this machine computes all layers rightly, so another one has damaged or other weights: run `edgepp models rm"
    " {model}` on one after the other and start edgepp there again, which fetches them"
)


async def exact(setting: Setting) -> CheckResult:
    """Greedy tokens in float32 against mlx-lm: each stage's layer range by its backend, then the whole pipeline."""
    subject = await setting.subject()
    status = await subject.status()
    checkpoint = Checkpoint.open(fetch(subject.model))
    if (told := _too_large(checkpoint, 8)) is not None:
        return told
    stages = [(LayerRange(*stage["layers"]), str(stage["backend"])) for stage in status["stages"]]
    prompt = Tokenizer.load(checkpoint.path).encode(PROMPT)

    def compare(given_up: threading.Event) -> dict[str, Any]:
        expected, source = _expected(checkpoint, prompt)
        equal: dict[str, int] = {}
        for layers, name in dict.fromkeys(stages):
            if given_up.is_set():
                raise EdgeppError("the check was stopped")
            setting.say(f"exact: layers {layers} by {name}")
            equal[f"{layers} {name}"] = leading(
                expected, _around(checkpoint, layers, name).answer(prompt, length=TOKENS)
            )
        return {"source": source, "expected": expected, "ranges": equal}

    found = await run_in_thread(compare, lambda _: None)
    answer = await subject.ask(prompt, TOKENS)
    whole = leading(found["expected"], answer.tokens) if len(answer.tokens) == TOKENS else 0
    wrong = [name for name, count in found["ranges"].items() if count < TOKENS]
    details = {"ranges": found["ranges"], "pipeline": whole, "reference": found["source"], "tokens": TOKENS}
    ranges = f"{len(found['ranges']) - len(wrong)} of {len(found['ranges'])} layer ranges"
    line = f"{ranges} give the {TOKENS} tokens of {found['source']}; the pipeline {whole} of {TOKENS}"
    counted = [*found["ranges"].values(), *([whole] if status["exact"] else [])]
    if not status["exact"]:
        line += " (it runs at default accuracy, where near-ties differ; `edgepp serve --exact` would be held to all)"
    hint = "" if wrong else _OTHER_WEIGHTS.format(model=subject.model)
    figure = float(min(counted))
    return CheckResult.held_to(line, figure, TOKENS, "equal tokens", at_least=True, details=details, hint=hint)


def _expected(checkpoint: Checkpoint, prompt: Sequence[int]) -> tuple[list[int], str]:
    if reference.available():
        return reference.greedy(checkpoint.path, prompt, TOKENS), "mlx-lm in float32"
    model = LocalModel(checkpoint, _options(exact=True), ["auto"])
    return model.answer(prompt, length=TOKENS), "one process in float32 (mlx-lm is not installed here)"


def _around(checkpoint: Checkpoint, layers: LayerRange, name: str) -> LocalModel:
    """The whole model, with ``layers`` computed apart from the others by the backend ``name``."""
    cuts = [edge for edge in (layers.start, layers.stop) if 0 < edge < checkpoint.num_layers]
    other = "mlx" if reference.available() and name == "onnx" else name
    edges = (0, *cuts)
    return LocalModel(
        checkpoint, _options(exact=True), [name if start == layers.start else other for start in edges], cuts
    )


async def perplexity(setting: Setting) -> CheckResult:
    """Perplexity of default accuracy against float32, over the text that edgepp ships."""
    checkpoint = Checkpoint.open(fetch(await setting.model()))
    if (told := _too_large(checkpoint, 6)) is not None:
        return told
    ids = Tokenizer.load(checkpoint.path).encode(prompts.text())[:TEXT_TOKENS]
    name = backend.choose("auto", checkpoint).name

    def compare(given_up: threading.Event) -> tuple[dict[str, float], dict[str, float]]:
        models = [LocalModel(checkpoint, _options(exact=exact), [name]) for exact in (True, False)]
        differences = (LogitDifference(), LogitDifference())
        for done, (begins, tokens, following) in enumerate(slices(ids), 1):
            if given_up.is_set():
                raise EdgeppError("the check was stopped")
            setting.say(f"perplexity: {done * SLICE} of {len(ids) - 1} tokens")
            for model in models if begins else ():
                model.open()
            logits = [model.logits(tokens) for model in models]
            for difference, one in zip(differences, logits, strict=True):
                difference.add(logits[0], one, following)
        return differences[0].result(), differences[1].result()

    exact_found, found = await run_in_thread(compare, lambda _: None)
    change = found["perplexity"] / exact_found["perplexity"] - 1
    line = (
        f"{found['perplexity']:.2f} by {name} over {len(ids) - 1} tokens, float32 {exact_found['perplexity']:.2f}"
        f" ({change:+.2%}); the likeliest token agrees in {found['top1']:.1%}"
    )
    details = {"default": found, "float32": exact_found, "tokens": len(ids) - 1, "backend": name}
    return CheckResult.held_to(line, abs(change) * 100, MAX_PERPLEXITY_CHANGE * 100, "% change", details=details)


def _options(*, exact: bool) -> BackendOptions:
    return ComputePolicy.alone(None).backend_options(exact=exact)


def _too_large(checkpoint: Checkpoint, bytes_per_weight: int) -> CheckResult | None:
    """The reason not to compare here, if the float32 copies of the model do not fit into the memory."""
    needed = bytes_per_weight * _weights(checkpoint)
    usable = usable_memory()
    if needed <= usable:
        return None
    line = f"left out: {needed / 1e9:.1f} GB for the comparison in float32, and {usable / 1e9:.1f} GB are free here"
    return CheckResult(None, line)


def _weights(checkpoint: Checkpoint) -> int:
    return int(shape_from_config(checkpoint.settings).num_weights())
