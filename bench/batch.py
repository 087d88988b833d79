"""Token/s of one stage with the head behind it, by how many sequences decode together.

    python bench/batch.py --model smollm2-135m --threads 1 --batches 1,2,4,8,16

One process, no sockets: embedding, all layers, head and argmax, each round every batch in turn. On Linux start it with
GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which is what a node gives its stages.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from measure import Arguments, count, prompt, report, say, script

from edgepp import backend
from edgepp.backend.base import BackendOptions, Ends, StageModel
from edgepp.errors import UsageError
from edgepp.layers import LayerRange
from edgepp.model.checkpoint import Checkpoint
from edgepp.model.fetch import fetch


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = Arguments(__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a name, hub repository or folder (%(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="compute threads (%(default)s)")
    parser.add_argument("--batches", type=sizes, default=(1, 2, 4, 8, 16), help="sequences at once (1,2,4,8,16)")
    parser.add_argument("--prompt-tokens", type=count, default=64, help="that each sequence holds first (%(default)s)")
    parser.add_argument("--gen", type=count, default=32, help="tokens to generate a round (%(default)s)")
    parser.add_argument("--rounds", type=count, default=5, help="measured rounds, after one to warm up (%(default)s)")
    parser.add_argument("--backend", choices=backend.NAMES, default="auto", help="(%(default)s)")
    return parser.parse_args()


def sizes(text: str) -> tuple[int, ...]:
    """Batch sizes from a command line."""
    return tuple(count(part) for part in text.split(","))


class Bench:
    """A whole model in this process, and as many sequences as the largest batch has."""

    def __init__(self, options: argparse.Namespace) -> None:
        checkpoint = Checkpoint.open(fetch(options.model))
        self._positions = options.prompt_tokens
        self._steps = options.gen
        if self._positions + self._steps > checkpoint.context:
            raise UsageError(f"prompt and answer do not fit into the model's context of {checkpoint.context} tokens")
        chosen, compute = backend.choose(options.backend, checkpoint), BackendOptions(threads=options.threads)
        self._stage: StageModel = chosen.load_stage(checkpoint, LayerRange(0, checkpoint.num_layers), compute)
        self._ends: Ends = chosen.load_ends(checkpoint, compute)
        self._sequences = range(max(options.batches))
        for sequence in self._sequences:
            self._stage.open(sequence, self._positions + self._steps)
            ids = prompt(checkpoint.vocab_size, self._positions, sequence)
            for start in range(0, self._positions, self._stage.chunk):
                self._stage.extend(sequence, self._ends.embed(ids[start : start + self._stage.chunk], start))

    def run(self, batch: int) -> dict[str, float]:
        """Decode ``batch`` sequences together from where their prompts end; the rates of that."""
        sequences = self._sequences[:batch]
        for sequence in sequences:
            self._stage.truncate(sequence, self._positions)
        tokens = [0] * batch
        in_stage_s = 0.0
        start_s = time.perf_counter()
        for _ in range(self._steps):
            hidden = self._ends.embed(tokens, self._positions)
            entered_s = time.perf_counter()
            hidden = self._stage.decode(sequences, hidden)
            in_stage_s += time.perf_counter() - entered_s
            tokens = self._ends.logits(hidden).argmax(-1).tolist()
        spent_s = time.perf_counter() - start_s
        return {
            "aggregate_tok_s": batch * self._steps / spent_s,
            "stage_ms": in_stage_s / self._steps * 1e3,
            "ends_ms": (spent_s - in_stage_s) / self._steps * 1e3,
        }


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a batch size: medians over the rounds."""
    bench = Bench(options)
    runs: dict[int, list[dict[str, float]]] = {batch: [] for batch in options.batches}
    for turn in range(options.rounds + 1):
        for batch, results in runs.items():
            result = bench.run(batch)
            if turn:
                results.append(result)
        say(f"round {turn} of {options.rounds}" if turn else "warm-up")
    return [{"batch": batch, **summary(results)} for batch, results in runs.items()]


def summary(results: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Median of each figure, and the smallest and largest rate."""
    rates = [result["aggregate_tok_s"] for result in results]
    medians = {name: statistics.median(result[name] for result in results) for name in results[0]}
    return {**medians, "spread": [min(rates), max(rates)]}


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The result for people."""
    yield f"{'batch':>5} {'aggregate tok/s':>22} {'times the first':>16} {'stage ms':>9} {'ends ms':>8}"
    for row in rows:
        rate = f"{row['aggregate_tok_s']:.4g} ({row['spread'][0]:.3g}-{row['spread'][1]:.3g})"
        times = row["aggregate_tok_s"] / rows[0]["aggregate_tok_s"]
        yield f"{row['batch']:>5} {rate:>22} {times:>16.2f} {row['stage_ms']:>9.2f} {row['ends_ms']:>8.2f}"


def main() -> None:
    """Measure and report."""
    options = parse()
    rows = measured(options)
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    report({"bench": "batch", **settings, "rows": rows}, table(rows), json_only=options.json)


if __name__ == "__main__":
    script(main)
