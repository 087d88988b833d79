"""Token rate of a whole model in one process, by the number of sequences that decode together.

    python -m bench.batch --model smollm2-135m --threads 1 --batches 1,2,4,8,16

No sockets: embedding, all layers, head and argmax. Each round measures every batch in turn. On Linux start the script
with GLIBC_TUNABLES=glibc.malloc.hugetlb=1, as a node starts its stages.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial

from bench.toolkit.figures import cell, interleave, medians, prompt, table
from bench.toolkit.local import check_context
from bench.toolkit.script import Result, ScriptArguments, counts, script
from edgepp import backend
from edgepp.backend.base import BackendOptions, EmbeddingAndHead, StageModel
from edgepp.layer_range import LayerRange
from edgepp.model.fetch import fetch
from edgepp.model.weights.checkpoint import Checkpoint


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "threads", "rounds", "backend", prompt_tokens=64, gen=32)
    parser.add_argument("--batches", type=counts, default=[1, 2, 4, 8, 16], help="sequences at once (1,2,4,8,16)")
    return parser.parse_args()


class BatchDecoder:
    """A whole model in this process, with as many sequences as the largest batch."""

    def __init__(self, options: argparse.Namespace) -> None:
        checkpoint = Checkpoint.open(fetch(options.model))
        self._positions = options.prompt_tokens
        self._steps = options.gen
        check_context(self._positions + self._steps, checkpoint.context)
        chosen, compute = backend.choose(options.backend, checkpoint), BackendOptions(threads=options.threads)
        self._stage: StageModel = chosen.load_stage(checkpoint, LayerRange(0, checkpoint.num_layers), compute)
        self._ends: EmbeddingAndHead = chosen.load_embedding_and_head(checkpoint, compute)
        self._sequences = range(max(options.batches))
        for sequence in self._sequences:
            self._stage.open(sequence, self._positions + self._steps)
            ids = prompt(checkpoint.vocab_size, self._positions, sequence)
            for start in range(0, self._positions, self._stage.chunk):
                self._stage.extend(sequence, self._ends.embed(ids[start : start + self._stage.chunk], start))

    def round(self, batch: int, _turn: int) -> dict[str, float]:
        """Decode ``batch`` sequences together from the end of their prompts; returns the rates."""
        sequences = self._sequences[:batch]
        for sequence in sequences:
            self._stage.truncate(sequence, self._positions)
        tokens = [0] * batch
        stage_s = 0.0
        start_s = time.perf_counter()
        for _ in range(self._steps):
            hidden = self._ends.embed(tokens, self._positions)
            began_s = time.perf_counter()
            hidden = self._stage.decode(sequences, hidden)
            stage_s += time.perf_counter() - began_s
            tokens = self._ends.logits(hidden).argmax(-1).tolist()
        total_s = time.perf_counter() - start_s
        return {
            "aggregate_tokens_per_s": batch * self._steps / total_s,
            "stage_ms": stage_s / self._steps * 1e3,
            "ends_ms": (total_s - stage_s) / self._steps * 1e3,
        }


def measured(options: argparse.Namespace) -> Result:
    """One row per batch size: medians over the rounds."""
    decoder = BatchDecoder(options)
    results = interleave({batch: partial(decoder.round, batch) for batch in options.batches}, options.rounds)
    return {"rows": [{"batch": batch, **medians(found, tuple(found[0]))} for batch, found in results.items()]}


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    rows = result["rows"]
    first = rows[0]["aggregate_tokens_per_s"]
    yield from table(
        ("batch", "aggregate tok/s", "times the first", "stage ms", "ends ms"),
        [
            (
                str(row["batch"]), cell(row, "aggregate_tokens_per_s", ".4g"),
                f"{row['aggregate_tokens_per_s'] / first:.2f}",
                f"{row['stage_ms']:.2f}", f"{row['ends_ms']:.2f}",
            )
            for row in rows
        ],
    )  # fmt: skip


if __name__ == "__main__":
    script("batch", parse, measured, lines)
