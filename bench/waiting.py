"""How long people wait: a stream beside somebody's long prompt, and the second turn of a long chat.

    python bench/waiting.py --model smollm2-135m --stages 2 --threads 1 --long 4000 --history 1000

First it streams an answer alone, then beside a prompt of ``--long`` tokens, and compares the gaps between tokens. Then
it asks a conversation of ``--history`` tokens and its next turn, and compares the times to the first token; the next
turn of somebody else, for whom nothing is kept, stands beside it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from measure import Arguments, count, prompt, report, say, script, share_cpus
from sides import arrivals, pin

from edgepp import backend
from edgepp.benchmark.workload import percentile
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.pipeline import Pipeline, PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.errors import UsageError
from edgepp.model.checkpoint import Checkpoint
from edgepp.model.fetch import fetch

_STREAMING = 10
"""Tokens after which a stream is under way."""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = Arguments(__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a name, hub repository or folder (%(default)s)")
    parser.add_argument("--stages", type=count, default=2, help="stage processes (%(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="compute threads a stage (%(default)s)")
    parser.add_argument("--long", type=count, default=4000, help="tokens of the long prompt (%(default)s)")
    parser.add_argument("--history", type=count, default=1000, help="tokens of the first turn (%(default)s)")
    parser.add_argument("--turn", type=count, default=30, help="tokens that the second turn adds (%(default)s)")
    parser.add_argument("--rounds", type=count, default=3, help="measured rounds, after one to warm up (%(default)s)")
    parser.add_argument("--backend", choices=backend.NAMES, default="auto", help="(%(default)s)")
    return parser.parse_args()


class Bench:
    """A pipeline, and random prompts that nobody has asked before."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        spread = share_cpus(options.stages, options.threads)
        where = PipelineOptions(
            options.model, stages=options.stages, threads=options.threads, backend=options.backend, speculate="off"
        )
        self.pipeline = Pipeline(where)
        longest = max(options.long, options.history + options.turn) + 64
        if longest > self.pipeline.context:
            self.pipeline.close()
            raise UsageError(f"{longest} tokens do not fit the model's context of {self.pipeline.context}")
        for stage, cpus in zip(self.pipeline.stages, spread or (), strict=False):
            pin(stage.pid, cpus)
        self._vocabulary = Checkpoint.open(fetch(options.model)).vocab_size
        self._asked = 0

    def text(self, tokens: int) -> list[int]:
        """A prompt that begins like no other."""
        self._asked += 1
        return prompt(self._vocabulary, tokens, self._asked)

    def ask(self, ids: Sequence[int], tokens: int, owner: str = "") -> EngineRequest:
        """Begin an answer of so many tokens."""
        return self.pipeline.engine.submit(ids, GenerateOptions(tokens, ignore_eos=True), owner)

    def gaps(self) -> tuple[list[float], list[float], float]:
        """Seconds between tokens of a stream: alone, and while a long prompt is computed; and how long that took."""
        alone = arrivals(self.ask(self.text(32), 150))
        stream = self.ask(self.text(32), min(2000, self.pipeline.context - 32))
        came: list[float] = []
        reader = threading.Thread(target=lambda: arrivals(stream, came))
        reader.start()
        while len(came) < _STREAMING and reader.is_alive():
            time.sleep(0.001)
        began_s = time.perf_counter()
        long = self.ask(self.text(self._options.long), 1)
        arrivals(long)
        ended_s = time.perf_counter()
        self.pipeline.engine.cancel(stream)
        reader.join()
        during = [at for at in came if began_s <= at <= ended_s]
        if len(during) < 2:
            raise UsageError("the long prompt took no longer than a token of the stream", "give more tokens by --long")
        return between(alone), between(during), ended_s - began_s

    def turns(self) -> tuple[float, float, float]:
        """Seconds to the first token: of the first turn, of the second, and of another owner's like the second."""
        first = self.ask(self.text(self._options.history), 8, "ann")
        arrivals(first)
        longer = [*first.ids, *self.text(self._options.turn)]
        second = self.ask(longer, 8, "ann")
        arrivals(second)
        stranger = self.ask(longer, 8, f"stranger {self._asked}")
        arrivals(stranger)
        return first.timing.ttft_s, second.timing.ttft_s, stranger.timing.ttft_s


def between(came: Sequence[float]) -> list[float]:
    """Seconds from each to the next."""
    return [b - a for a, b in itertools.pairwise(came)]


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Both comparisons: gaps of all rounds together, first tokens' medians."""
    bench = Bench(options)
    gaps: list[tuple[list[float], list[float], float]] = []
    turns: list[tuple[float, float, float]] = []
    try:
        for number in range(options.rounds + 1):
            found = bench.gaps(), bench.turns()
            if number:
                gaps.append(found[0])
                turns.append(found[1])
            say(f"round {number} of {options.rounds}" if number else "warm")
    finally:
        bench.pipeline.close()
    worst = [percentile(during, 99) / statistics.median(alone) for alone, during, _ in gaps]
    shares = [second / first for first, second, _ in turns]
    return {
        "beside_a_long_prompt": {
            "alone_p50_s": statistics.median(statistics.median(alone) for alone, _, _ in gaps),
            "alone_p99_s": statistics.median(percentile(alone, 99) for alone, _, _ in gaps),
            "during_p50_s": statistics.median(statistics.median(during) for _, during, _ in gaps),
            "during_p99_s": statistics.median(percentile(during, 99) for _, during, _ in gaps),
            "long_ttft_s": statistics.median(took for _, _, took in gaps),
            "ratio": statistics.median(worst),
            "spread": [min(worst), max(worst)],
        },
        "second_turn": {
            "first_ttft_s": statistics.median(first for first, _, _ in turns),
            "second_ttft_s": statistics.median(second for _, second, _ in turns),
            "stranger_ttft_s": statistics.median(stranger for _, _, stranger in turns),
            "ratio": statistics.median(shares),
            "spread": [min(shares), max(shares)],
        },
    }


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    gaps, turns = result["beside_a_long_prompt"], result["second_turn"]
    yield (
        f"gap between tokens alone {1e3 * gaps['alone_p50_s']:.1f} ms (p99 {1e3 * gaps['alone_p99_s']:.1f}), beside a"
        f" prompt of {result['long']} tokens {1e3 * gaps['during_p50_s']:.1f} (p99 {1e3 * gaps['during_p99_s']:.1f});"
        f" p99 to median alone {gaps['ratio']:.2f} ({gaps['spread'][0]:.2f}-{gaps['spread'][1]:.2f});"
        f" the prompt took {gaps['long_ttft_s']:.1f} s"
    )
    yield (
        f"first token of a turn of {result['history']} tokens {turns['first_ttft_s']:.2f} s, of the next"
        f" {turns['second_ttft_s']:.2f} s, {turns['ratio']:.3f} of it"
        f" ({turns['spread'][0]:.3f}-{turns['spread'][1]:.3f}); of somebody else's {turns['stranger_ttft_s']:.2f} s"
    )


def main() -> None:
    """Measure and report."""
    options = parse()
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    result = {"bench": "waiting", **settings, **measured(options)}
    report(result, table(result), json_only=options.json)


if __name__ == "__main__":
    script(main)
