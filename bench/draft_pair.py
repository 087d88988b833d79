"""Make a draft from some layers of a model, and measure how often its guesses are right and what they could gain.

    python -m bench.draft_pair --keep 26,22,18
    python -m bench.draft_pair --layers 0-12,17-29 --out /tmp/draft
    python -m bench.speculation --delay-ms 0 --speculate /tmp/draft

Greedy answers of the model to ten questions are the reference: a guess is right where the draft's likeliest token,
after the same text, is the answer's. --keep tries drafts that lack one block of layers, and reports the best one for
each number of layers. The gain is that of the event model of ``toolkit/guess_model``, with the measured times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from bench.toolkit.figures import table
from bench.toolkit.guess_model import RingCosts, tokens_per_s
from bench.toolkit.questions import QUESTIONS
from bench.toolkit.script import Result, ScriptArguments, counts, say, script
from edgepp import backend
from edgepp.backend.base import BackendOptions, EmbeddingAndHead, StageModel
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.errors import UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.fetch import fetch
from edgepp.model.text.conversation import Conversation
from edgepp.model.weights.checkpoint import Array, Checkpoint, layer_of
from edgepp.stage_process.compute_policy import physical_cores

_STAGES = 2
"""Stages of the pipeline whose gain is computed."""
_TIMED = 24
"""Timed steps, of which the median counts."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "threads", "backend", gen=96)
    parser.add_argument("--layers", type=layer_list, help="layers of the draft, as 0-12,17-29")
    parser.add_argument("--keep", type=counts, default=[], help="numbers of layers, for which the best block goes")
    parser.add_argument("--out", type=Path, help="folder to write the draft of --layers to")
    options = parser.parse_args()
    if not options.layers and not options.keep:
        parser.error("name --layers, or numbers of layers to --keep")
    if options.out is not None and not options.layers:
        parser.error("--out needs --layers")
    return options


def layer_list(text: str) -> list[int]:
    """Parse ranges of layers with both ends included, in rising order."""
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        if not low.isdecimal() or not (high or low).isdecimal():
            raise argparse.ArgumentTypeError(f"'{part}' is not a layer or a range of layers")
        found += range(int(low), int(high or low) + 1)
    if not found or found != sorted(set(found)):
        raise argparse.ArgumentTypeError(f"'{text}' does not name layers in rising order")
    return found


Answer = tuple[int, list[int]]
"""Number of tokens of the prompt, and the token ids of prompt and answer."""


def greedy_answers(options: argparse.Namespace) -> list[Answer]:
    """Greedy answers of the whole model to all questions."""
    wanted = PipelineOptions(options.model, backend=options.backend, threads=options.threads, speculate="off")
    found = []
    with Pipeline(wanted) as pipeline:
        for question in QUESTIONS:
            stream = pipeline.ask(Conversation.of(question), GenerateOptions(options.gen))
            for _ in stream:
                pass
            prompt = pipeline.tokenizer.encode_prompt(Conversation.of(question), pipeline.context, "").ids
            found.append((len(prompt), [*prompt, *stream.token_ids]))
    return found


class SingleLayers:
    """Each layer of a model as a stage of its own, so that any selection of them can be run. Belongs to one thread."""

    def __init__(self, checkpoint: Checkpoint, backend_name: str, threads: int) -> None:
        chosen, how = backend.choose(backend_name, checkpoint), BackendOptions(threads=threads)
        ranges = [LayerRange(layer, layer + 1) for layer in range(checkpoint.num_layers)]
        self._stages: list[StageModel] = [chosen.load_stage(checkpoint, one, how) for one in ranges]
        self._ends: EmbeddingAndHead = chosen.load_embedding_and_head(checkpoint, how)

    def embed(self, answers: Sequence[Answer]) -> list[Array]:
        """Hidden states before the first layer, of all tokens but the last one of each answer."""
        return [np.array(self._ends.embed(ids[:-1], 0)) for _, ids in answers]

    def run(self, hidden: Sequence[Array], layers: Sequence[int]) -> list[Array]:
        """Hidden states of each text behind ``layers``."""
        found = list(hidden)
        for layer in layers:
            found = [self._extend(self._stages[layer], one) for one in found]
        return found

    def _extend(self, stage: StageModel, hidden: Array) -> Array:
        stage.open(1, len(hidden) + 1)
        found = np.array(stage.extend(1, hidden))
        stage.free(1)
        return found

    def acceptance(self, answers: Sequence[Answer], hidden: Sequence[Array]) -> float:
        """The share of the answers' tokens that are the likeliest ones by the last layer's ``hidden`` states."""
        right = [
            self._ends.logits(np.ascontiguousarray(states[prompt - 1 :])).argmax(1) == np.array(ids[prompt:])
            for (prompt, ids), states in zip(answers, hidden, strict=True)
        ]
        return float(np.concatenate(right).mean())

    def times_s(self, hidden: Array) -> tuple[list[float], float]:
        """Median seconds of one row behind the text ``hidden``: of each layer, and of embedding and head together.

        Every step goes through the whole model, so that caches hold as much of a layer's weights as in a real step.
        """
        for stage in self._stages:
            stage.open(1, len(hidden) + _TIMED)
            stage.extend(1, hidden)
        steps = [self._step_s(hidden[:1]) for _ in range(_TIMED)]
        for stage in self._stages:
            stage.free(1)
        *layers_s, ends_s = (statistics.median(times) for times in zip(*steps, strict=True))
        return layers_s, ends_s

    def _step_s(self, hidden: Array) -> list[float]:
        marks = [time.perf_counter()]
        for stage in self._stages:
            stage.extend(1, hidden)
            marks.append(time.perf_counter())
        self._ends.logits(hidden)
        self._ends.embed([1], 0)
        marks.append(time.perf_counter())
        return [end - begin for begin, end in itertools.pairwise(marks)]


def best_block(layers: SingleLayers, answers: Sequence[Answer], before: Sequence[list[Array]], keep: int) -> list[int]:
    """The ``keep`` layers that remain without one block of layers, chosen so that most guesses are right.

    ``before`` has the hidden states before each layer; the first and the last layer stay.
    """
    gap = len(before) - keep
    found = {}
    for start in range(1, keep):
        hidden = layers.run(before[start], range(start + gap, len(before)))
        found[start] = layers.acceptance(answers, hidden)
    start = max(found, key=lambda one: found[one])
    return [layer for layer in range(len(before)) if not start <= layer < start + gap]


def measured(options: argparse.Namespace) -> Result:
    """One row per draft."""
    checkpoint = Checkpoint.open(fetch(options.model))
    if max([*options.keep, *(layer + 1 for layer in options.layers or ())]) > checkpoint.num_layers:
        raise UsageError(f"the model has {checkpoint.num_layers} layers")
    answers = greedy_answers(options)
    layers = SingleLayers(checkpoint, options.backend, options.threads)
    before = [layers.embed(answers)]
    for layer in range(checkpoint.num_layers - 1):
        before.append(layers.run(before[-1], [layer]))
    layers_s, ends_s = layers.times_s(before[0][0])
    drafts = [options.layers] if options.layers else []
    for keep in options.keep:
        drafts.append(best_block(layers, answers, before, keep))
        say(f"{keep} layers: {ranges_text(drafts[-1])}")
    rows = []
    for kept in drafts:
        share = layers.acceptance(answers, layers.run(before[0], kept))
        rows.append({"layers": kept, "acceptance": share, **gains(layers_s, ends_s, kept, share)})
    if options.out is not None:
        write(checkpoint, options.layers, options.out)
    return {"rows": rows, "tokens": sum(len(ids) - prompt for prompt, ids in answers), "cores": physical_cores()}


def gains(layers_s: Sequence[float], ends_s: float, kept: Sequence[int], acceptance: float) -> dict[str, float]:
    """The draft's time, in ms and as a share of the model's, and rates by the event model over one process.

    Each ratio is the rate with guesses divided by that of one process without: ``free_ratio`` of a draft without costs,
    ``apart_ratio`` where draft, coordinator and each stage have cores of their own, ``shared_ratio`` where all of them
    share the cores of this machine.
    """
    half = len(layers_s) // _STAGES
    stages_s, model_s = (sum(layers_s[:half]), sum(layers_s[half:])), sum(layers_s) + ends_s
    draft_s = sum(layers_s[layer] for layer in kept) + ends_s
    cases = {"free": (0.0, float("inf")), "apart": (draft_s, float("inf")), "shared": (draft_s, physical_cores())}
    ratios = {
        f"{name}_ratio": model_s * tokens_per_s(RingCosts(stages_s, ends_s, 0.0, cores, cost_s), acceptance)
        for name, (cost_s, cores) in cases.items()
    }
    return {"draft_ms": draft_s * 1e3, "model_ms": model_s * 1e3, "cost": draft_s / model_s, **ratios}


def write(checkpoint: Checkpoint, kept: Sequence[int], folder: Path) -> None:
    """Write a checkpoint of the layers ``kept`` with the tokenizer of the whole model."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {layer: number for number, layer in enumerate(kept)}
    weights: dict[str, Any] = {}
    for file in sorted({place.file for place in checkpoint.tensors.values()}):
        tensors: Any = mx.load(str(file))
        for name, tensor in tensors.items():
            layer = layer_of(name)
            if layer is None:
                weights[name] = tensor
            elif layer in numbers:
                weights[name.replace(f".{layer}.", f".{numbers[layer]}.", 1)] = tensor
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    config = {**checkpoint.config, "num_hidden_layers": len(kept)}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for file in checkpoint.path.glob("*.json"):
        if not file.name.endswith(".index.json") and file.name != "config.json":
            shutil.copy(file, folder / file.name)


def ranges_text(layers: Sequence[int]) -> str:
    """Layers as ranges with both ends included."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ",".join(f"{start}-{end}" if end > start else f"{start}" for start, end in zip(starts, ends, strict=True))


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    headings = ("layers", "acceptance", "draft ms", "of the model", "gain if free", "own core", "shared cores")
    rows = [
        (
            f"{len(one['layers'])}: {ranges_text(one['layers'])}",
            f"{one['acceptance']:.2f}",
            f"{one['draft_ms']:.1f}",
            f"{one['cost']:.0%}",
            *(f"{one[name]:.2f}" for name in ("free_ratio", "apart_ratio", "shared_ratio")),
        )
        for one in result["rows"]
    ]
    yield from table(headings, rows)
    yield f"over {_STAGES} stages, against one process without guesses; {result['cores']} cores are shared"


if __name__ == "__main__":
    script("draft_pair", parse, measured, lines)
