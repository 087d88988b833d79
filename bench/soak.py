"""A cluster under faults drawn at random: every answer is right, or ends in an error that names a part; nothing leaks.

    python -m bench.soak --minutes 10 --seed 1

A coordinator and three nodes run with --exact. Before the faults, each question is asked once; its answer is the right
one. Then clients ask the questions again, over HTTP and of the coordinator, and cancel some, while stage processes,
nodes and, in the first half, the coordinator are killed and started again, or stopped for some seconds.

The script fails on a wrong token, an answer that takes longer than ``--longest`` seconds or is cut without an error,
an error that names no part, an error where enough machines remained, a process or descriptor that is left over, and,
in a run of at least five minutes, memory that grows. A request may end in an error where the coordinator was killed, or
where more than two faults met it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai

from bench.faults.injection import FaultInjector, Happened, is_of_coordinator
from bench.faults.processes import FaultyCluster
from bench.faults.questions import QUESTIONS, Heard, RepeatableQuestion, ask
from bench.toolkit.figures import slope_per_minute
from bench.toolkit.script import Result, ScriptArguments, count, say, script
from edgepp.errors import EdgeppError

_CANCELLED_SHARE = 0.12
_MAX_RECOVERIES = 2
"""Faults that one answer outlives."""
_RECENT_S = 5.0
"""A fault this long before a request may still end it: the cluster has not noticed, or waits for a node."""
_AFTER_ERROR_S = 2.0
"""A client's wait before it asks again, so that a coordinator that is away does not fill the counts."""
_SETTLE_S = 60.0
_RETIRED_S = 150.0
"""Seconds until stage processes that stayed beside their successors have ended, which takes two minutes at most."""
_JUDGED_MINUTES = 5.0
"""Minimum length of a run for which growth of memory is a fault, because a cluster fills its pools first."""
_SPARE_DESCRIPTORS = 24
_NAMES_A_PART = re.compile(
    r"stage \d+ \(layers [\d, -]+\)|on node \w+|the coordinator at|request \d+|layers were distributed|stopped serving"
    r"|the cluster cannot answer yet: .|coordinator .* cannot be found"
)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the run (%(default)s)")
    parser.add_argument("--seed", type=count, default=1, help="of faults and requests (%(default)s)")
    parser.add_argument("--clients", type=count, default=5, help="requests at a time (%(default)s)")
    parser.add_argument("--longest", type=float, default=150.0, help="seconds that a request may take (%(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=3.0, help="greatest accepted growth, MB per minute (%(default)s)"
    )
    return parser.parse_args()


class Soak:
    """A cluster, its clients, and the outcomes of their requests."""

    def __init__(self, options: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
        self.options = options
        self.cluster = FaultyCluster(folder, options.model, stack)
        self.ended: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.failures: list[str] = []
        """Failures that the oracle found, each a sentence."""
        self.gaps_s: list[float] = []
        """Longest gap of each answer that a fault met and that was whole in the end."""
        self.recoveries: Counter[str] = Counter()
        self.pauses_s: list[float] = []
        """Pauses of recoveries, as the coordinator tells them."""
        self._right: dict[RepeatableQuestion, Heard] = {}
        self._running: dict[int, tuple[RepeatableQuestion, float]] = {}
        self._stop = threading.Event()
        self._injector: FaultInjector

    def run(self) -> dict[str, Any]:
        """Ask questions and inject faults for the given time; returns the result."""
        cluster = self.cluster
        cluster.wait("a plan with all nodes", cluster.complete)
        self._learn()
        before = cluster.held()
        self._injector = FaultInjector(cluster, self.options.seed, self.options.minutes)
        clients = [
            threading.Thread(target=self._ask_repeatedly, args=(number,), daemon=True)
            for number in range(self.options.clients)
        ]
        for client in clients:
            client.start()
        try:
            self._injector.run(self._progress)
            complete_s = cluster.wait("a plan with all nodes at the end", cluster.complete)
        finally:
            self._stop.set()
            for client in clients:
                client.join(self.options.longest)
        cluster.wait("the end of all requests", cluster.idle, _SETTLE_S)
        until_s = time.monotonic() + _RETIRED_S
        while [*_left(before, cluster.held()), *cluster.orphans()] and time.monotonic() < until_s:
            time.sleep(2.5)  # two pings, so that the stages report new figures
        self._note_hangs()
        return self._result(before, cluster.held(), complete_s)

    def _learn(self) -> None:
        """Ask each question without faults."""
        for question in QUESTIONS:
            heard = Heard.of(question)
            ask(question, self.cluster.url, heard)
            if None in heard.ended:
                raise EdgeppError(f"the undisturbed answer to '{question.text[:40]}' has no end")
            self._right[question] = heard

    def _progress(self) -> str:
        self._note_hangs()
        return f"{dict(self.ended)}; {len(self.failures)} failures"

    def _note_hangs(self) -> None:
        for number, (question, began_s) in list(self._running.items()):
            if time.monotonic() - began_s > self.options.longest and self._running.pop(number, None):
                self.ended["hung"] += 1
                self.failures.append(f"hung: {question.kind}")

    def _ask_repeatedly(self, client: int) -> None:
        draw = random.Random(1000 * self.options.seed + client)  # noqa: S311 - a mix, not a secret
        while not self._stop.is_set():
            question = draw.choice(QUESTIONS)
            cancel_after = draw.randrange(1, 8) if draw.random() < _CANCELLED_SHARE else None
            heard = Heard.of(question)
            self._running[client] = (question, heard.began_s)
            error: Exception | None = None
            try:
                ask(question, self.cluster.url, heard, cancel_after)
            except (EdgeppError, openai.APIError) as raised:
                error = raised
                self._stop.wait(_AFTER_ERROR_S)
            if self._running.pop(client, None):
                self.kinds[question.kind] += 1
                self._judge(question, heard, error)

    def _judge(self, question: RepeatableQuestion, heard: Heard, error: Exception | None) -> None:
        """Count the outcome of a request, and compare its answer with the right answer."""
        met = self._injector.during(heard.began_s - _RECENT_S, time.monotonic())
        outcome = "error" if error else "cancelled" if heard.cancelled else "whole"
        if outcome == "whole" and self._injector.during(heard.began_s, time.monotonic()):
            outcome = "whole after a recovery" if heard.recoveries else "whole in spite of a fault"
            self.gaps_s.append(heard.longest_gap_s)
        for recovery in heard.recoveries:
            self.recoveries[recovery.how] += 1
            self.pauses_s.append(recovery.pause_s)
        self.ended[outcome] += 1
        if heard.differs_from(self._right[question]):
            self.failures.append(f"wrong: {question.kind}: {heard.choices!r:.200}")
        if error is None:
            if None in heard.ended and not heard.cancelled:
                self.failures.append(f"cut without an error: {question.kind}")
            return
        text = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", f"{type(error).__name__}: {error}")
        self.errors[text[:300]] += 1
        away = is_of_coordinator(met)
        if not _NAMES_A_PART.search(text) and not (away and isinstance(error, openai.APIConnectionError)):
            self.failures.append(f"names no part: {question.kind}: {text[:200]}")
        if not away and len(met) <= _MAX_RECOVERIES:
            self.failures.append(f"not recovered: {question.kind}, {_told_faults(met, heard.began_s)}: {text[:200]}")

    def _result(self, before: dict[str, Any], after: dict[str, Any], complete_s: float) -> dict[str, Any]:
        memory = self._injector.coordinator_memory or [(0.0, 0.0)]
        return {
            "ended": dict(self.ended),
            "asked": dict(self.kinds),
            "faults": dict(self._injector.counts),
            "gap_s": _percentiles(self.gaps_s),
            "recoveries": dict(self.recoveries),
            "pause_s": _percentiles(self.pauses_s),
            "errors": dict(self.errors),
            "failures": self.failures,
            "ready_again_s": complete_s,
            "before": before,
            "after": after,
            "left": [*_left(before, after), *(f"orphan: {one}" for one in self.cluster.orphans())],
            "coordinator_mb": [memory[0][1], memory[-1][1]],
            "slope_mb_per_min": slope_per_minute(memory[len(memory) // 4 :]),
        }


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    shares = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    return {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None for name, share in shares
    }


def _told_faults(met: Sequence[Happened], began_s: float) -> str:
    """Faults with their times since the request began."""
    told = ", ".join(f"{one.kind} at {one.began_s - began_s:+.1f} s" for one in met) or "no fault"
    return f"{told}, ended after {time.monotonic() - began_s:.1f} s"


def _left(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Resources that are held although no request is running."""
    if after["live"]:
        yield f"{after['live']} live requests"
    if len(set(after["sequences"])) > 1:
        yield f"sequences of stages differ: {after['sequences']}"
    for name, number in after["processes"].items():
        if number > before["processes"][name]:
            yield f"{number - before['processes'][name]} processes of {name}"
    for name, number in after["descriptors"].items():
        if number > before["descriptors"][name] + _SPARE_DESCRIPTORS:
            yield f"{number - before['descriptors'][name]} descriptors of {name}"


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    yield f"{sum(result['ended'].values())} requests: {_counts(result['ended'])}"
    yield f"{sum(result['faults'].values())} faults: {_counts(result['faults'])}"
    yield from (f"  {number:4} x {kind}" for kind, number in sorted(result["asked"].items()))
    yield f"longest gap of answers that a fault met: {_told(result['gap_s'])}"
    yield f"recoveries: {_counts(result['recoveries']) or 'none'}; pauses: {_told(result['pause_s'])}"
    yield from (f"  {number} x {text}" for text, number in result["errors"].items())
    failures = Counter(text.partition(":")[0] for text in result["failures"])
    yield f"failures: {_counts(failures) or 'none'}; left over: {', '.join(result['left']) or 'nothing'}"
    before, after = result["coordinator_mb"]
    yield f"coordinator: {before:.0f} MB -> {after:.0f} MB, {result['slope_mb_per_min']:+.2f} MB per minute"
    yield f"all nodes had layers {result['ready_again_s']:.1f} s after the last fault"


def _told(found: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.1f} s" for name, value in found.items() if value is not None) or "none"


def _counts(counter: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counter.items())


def measured(options: argparse.Namespace) -> Result:
    """Run the soak; after a failure the logs go to standard error."""
    with (
        tempfile.TemporaryDirectory(prefix="edgepp-soak-", ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        result = Soak(options, Path(folder), stack).run()
        if faults(options, result) is not None:
            for file in sorted(Path(folder).glob("*.log")):
                say(f"{file.name}: {file.read_text(encoding='utf-8', errors='replace')[-2000:]}")
        return result


def faults(options: argparse.Namespace, result: Result) -> EdgeppError | None:
    """Error of a run with a failure; None without one."""
    found = [*result["failures"], *result["left"]]
    if result["slope_mb_per_min"] > options.tolerance and options.minutes >= _JUDGED_MINUTES:
        found.append(f"memory grows by {result['slope_mb_per_min']:.1f} MB per minute")
    if not found:
        return None
    return EdgeppError(f"{len(found)} failures: {json.dumps(found, ensure_ascii=False)[:1000]}", "the logs are above")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    script("soak", parse, measured, lines, faults)
