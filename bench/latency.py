"""Waiting times: a stream during another owner's long prompt, and the second turn of a long chat.

    python -m bench.latency --model smollm2-135m --stages 2 --threads 1 --long 4000 --history 1000

The first part streams an answer alone, then during a prompt of ``--long`` tokens, and compares the gaps between tokens.
The second part asks a conversation of ``--history`` tokens and its next turn, and compares the times to the first
token, also with the same turn from another owner, for whom no cache is kept.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.toolkit.figures import interleave, prompt, ratio, spread_text
from bench.toolkit.local import arrivals, local_pipeline
from bench.toolkit.script import Result, ScriptArguments, count, script
from edgepp.benchmark.report import Spread
from edgepp.benchmark.workload import percentile
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.errors import UsageError
from edgepp.model.fetch import fetch
from edgepp.model.weights.checkpoint import Checkpoint

_STREAM_TOKENS = 10
"""Tokens of a stream before the long prompt starts."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "stages", "threads", "backend", rounds=3)
    parser.add_argument("--long", type=count, default=4000, help="tokens of the long prompt (%(default)s)")
    parser.add_argument("--history", type=count, default=1000, help="tokens of the first turn (%(default)s)")
    parser.add_argument("--turn", type=count, default=30, help="tokens that the second turn adds (%(default)s)")
    return parser.parse_args()


class TokenGaps(NamedTuple):
    """Seconds between the tokens of a stream, and seconds of the long prompt."""

    alone_s: list[float]
    during_s: list[float]
    """Gaps during the long prompt."""
    long_ttft_s: float


class FirstTokens(NamedTuple):
    """Seconds to the first token."""

    first_s: float
    """First turn of a conversation."""
    second_s: float
    """Second turn of the conversation."""
    other_owner_s: float
    """The second turn as a request of another owner."""


class LatencyProbe:
    """Measurements of a pipeline by random prompts, each new."""

    def __init__(self, pipeline: Pipeline, options: argparse.Namespace) -> None:
        """Check the lengths of the prompts.

        Raises:
            UsageError: the prompts do not fit the model's context.
        """
        self._pipeline, self._options = pipeline, options
        longest = max(options.long, options.history + options.turn) + 64
        if longest > pipeline.context:
            raise UsageError(
                f"{longest} tokens do not fit the model's context of {pipeline.context}", "lower --long or --history"
            )
        self._vocabulary = Checkpoint.open(fetch(options.model)).vocab_size
        self._asked = 0

    def text(self, tokens: int) -> list[int]:
        """A new prompt of ``tokens`` tokens."""
        self._asked += 1
        return prompt(self._vocabulary, tokens, self._asked)

    def ask(self, ids: Sequence[int], tokens: int, owner: str = "") -> EngineRequest:
        """Submit a request for ``tokens`` tokens."""
        return self._pipeline.engine.submit(ids, GenerateOptions(tokens, ignore_eos=True), owner)

    def gaps(self) -> TokenGaps:
        """Stream an answer alone, then another answer during a long prompt."""
        alone = arrivals(self.ask(self.text(32), 150))
        stream = self.ask(self.text(32), min(2000, self._pipeline.context - 32))
        came: list[float] = []
        reader = threading.Thread(target=lambda: arrivals(stream, came))
        reader.start()
        while len(came) < _STREAM_TOKENS and reader.is_alive():
            time.sleep(0.001)
        began_s = time.perf_counter()
        long = self.ask(self.text(self._options.long), 1)
        arrivals(long)
        ended_s = time.perf_counter()
        self._pipeline.engine.cancel(stream)
        reader.join()
        during = [at for at in came if began_s <= at <= ended_s]
        if len(during) < 2:
            raise UsageError("the long prompt took no longer than a token of the stream", "give more tokens by --long")
        return TokenGaps(between(alone), between(during), ended_s - began_s)

    def turns(self) -> FirstTokens:
        """Ask a conversation, its next turn, and that turn as another owner."""
        first = self.ask(self.text(self._options.history), 8, "ann")
        arrivals(first)
        longer = [*first.ids, *self.text(self._options.turn)]
        second = self.ask(longer, 8, "ann")
        arrivals(second)
        other = self.ask(longer, 8, f"other {self._asked}")
        arrivals(other)
        return FirstTokens(first.timing.ttft_s, second.timing.ttft_s, other.timing.ttft_s)


def between(came: Sequence[float]) -> list[float]:
    """Seconds between consecutive times."""
    return [b - a for a, b in itertools.pairwise(came)]


def measured(options: argparse.Namespace) -> Result:
    """Make both comparisons in turn; returns medians over the rounds."""
    where = PipelineOptions(
        options.model, stages=options.stages, threads=options.threads, backend=options.backend, speculate="off"
    )
    with local_pipeline(where) as pipeline:
        probe = LatencyProbe(pipeline, options)
        found = interleave({"both": lambda _: (probe.gaps(), probe.turns())}, options.rounds)["both"]
    gaps, turns = [one for one, _ in found], [one for _, one in found]
    worst = [percentile(one.during_s, 99) for one in gaps]
    usual = [statistics.median(one.alone_s) for one in gaps]
    return {
        "during_long_prompt": {
            "alone_p50_s": statistics.median(usual),
            "alone_p99_s": statistics.median(percentile(one.alone_s, 99) for one in gaps),
            "during_p50_s": statistics.median(statistics.median(one.during_s) for one in gaps),
            "during_p99_s": statistics.median(worst),
            "long_ttft_s": statistics.median(one.long_ttft_s for one in gaps),
            **ratio(Spread.of_ratios(worst, usual)),
        },
        "second_turn": {
            "first_ttft_s": statistics.median(one.first_s for one in turns),
            "second_ttft_s": statistics.median(one.second_s for one in turns),
            "other_owner_ttft_s": statistics.median(one.other_owner_s for one in turns),
            **ratio(Spread.of_ratios([one.second_s for one in turns], [one.first_s for one in turns])),
        },
    }


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    gaps, turns = result["during_long_prompt"], result["second_turn"]
    yield (
        f"gap between tokens alone {1e3 * gaps['alone_p50_s']:.1f} ms (p99 {1e3 * gaps['alone_p99_s']:.1f}), during a"
        f" prompt of {result['long']} tokens {1e3 * gaps['during_p50_s']:.1f} (p99 {1e3 * gaps['during_p99_s']:.1f});"
        f" p99 to median alone {spread_text(gaps['ratio'], gaps['spread'])};"
        f" the prompt took {gaps['long_ttft_s']:.1f} s"
    )
    yield (
        f"first token of a turn of {result['history']} tokens {turns['first_ttft_s']:.2f} s, of the next"
        f" {turns['second_ttft_s']:.2f} s, {spread_text(turns['ratio'], turns['spread'])} of it;"
        f" of another owner's {turns['other_owner_ttft_s']:.2f} s"
    )


if __name__ == "__main__":
    script("latency", parse, measured, lines)
