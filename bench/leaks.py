"""Thousands of mixed requests, after which memory, sequences, sockets and file descriptors must be as before.

    python -m bench.leaks --model smollm2-135m --requests 2000

The requests are random: short and long, greedy and sampled, constrained, with stop strings, in conversations, of
several owners, some cancelled, and more at the same time than fit, so that some are preempted. The first tenth warms
up; resources after the warm-up and after the last request must not differ, memory by no more than the share
``--tolerance``.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from bench.toolkit.script import Result, ScriptArguments, count, say, script
from edgepp.benchmark.prompts import words
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.errors import EdgeppError, UsageError
from edgepp.model.text.conversation import Conversation, Message

CLIENTS = 12
OWNERS = ("ann", "bob", "cho")
MAX_TOKENS = 40


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "stages", "threads", "backend")
    parser.add_argument("--requests", type=count, default=2000, help="in all, warm-up included (%(default)s)")
    parser.add_argument("--budget", type=count, default=700, help="positions of KV cache (%(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=0.1, help="greatest share by which memory may grow (%(default)s)"
    )
    return parser.parse_args()


class LeakTrial:
    """A pipeline and the clients that keep it busy."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.pipeline = Pipeline(
            PipelineOptions(
                options.model,
                stages=options.stages,
                threads=options.threads,
                backend=options.backend,
                budget=options.budget,
            )
        )
        self._words = words()
        self.ended: Counter[str] = Counter()
        self.asked = self.tokens = self.reused = 0

    def run(self, requests: int) -> None:
        """Ask ``requests`` requests, 12 at the same time, and wait for the last."""
        turns: queue.SimpleQueue[int] = queue.SimpleQueue()
        for _ in range(requests):
            self.asked += 1
            turns.put(self.asked)
        clients = [threading.Thread(target=self._ask_all, args=(turns,)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            while client.is_alive():
                client.join(20.0)
                say(f"{self.asked - turns.qsize()} asked, {dict(self.ended)}")

    def _ask_all(self, turns: queue.SimpleQueue[int]) -> None:
        while True:
            try:
                turn = turns.get_nowait()
            except queue.Empty:
                return
            try:
                self.ended[self._ask(random.Random(turn))] += 1  # noqa: S311 - a mix, not a secret
            except EdgeppError as error:
                self.ended[f"{type(error).__name__}: {error}"] += 1

    def _ask(self, draw: random.Random) -> str:
        owner = draw.choice(OWNERS)
        at = draw.choice((0, 0, 0, draw.randrange(len(self._words) - 120)))
        text = " ".join(self._words[at : at + draw.choice((5, 20, 60, 120))])
        messages: list[Message] = [{"role": "user", "content": text}]
        kind = ""
        for _ in range(draw.choice((1, 1, 1, 2))):
            answer = self.pipeline.ask(Conversation(messages), self._options(draw), owner)
            cancel_after = draw.randrange(1, 12) if draw.random() < 0.15 else None
            pieces = []
            for piece in answer:
                pieces.append(piece)
                if len(pieces) == cancel_after:
                    answer.cancel()
            self.tokens += len(answer.token_ids)
            self.reused += answer.timing.reused
            kind = str(answer.finish_reason)
            messages += [{"role": "assistant", "content": "".join(pieces)}, {"role": "user", "content": "Go on."}]
        return kind

    def _options(self, draw: random.Random) -> GenerateOptions:
        sampling = draw.choice(
            (
                SamplingOptions(),
                SamplingOptions(temperature=0.8, top_p=0.9, seed=draw.randrange(1 << 30)),
                SamplingOptions(temperature=1.0, top_k=40, frequency_penalty=0.5, logprobs=3),
            )
        )
        constraint = Constraint("regex", "[a-z ]{5,40}[.]") if draw.random() < 0.1 else None
        stop = (".",) if constraint is None and draw.random() < 0.2 else ()
        return GenerateOptions(draw.randrange(1, MAX_TOKENS), stop, sampling=sampling, constraint=constraint)

    def held(self) -> dict[str, Any]:
        """Resources of the processes of coordinator and stages, when no request is running."""
        deadline_s = time.monotonic() + 10.0
        while self.pipeline.engine.load.live and time.monotonic() < deadline_s:
            time.sleep(0.1)
        time.sleep(2.5)  # two pings, so that the stages report new figures
        load = self.pipeline.engine.load
        processes = [psutil.Process(os.getpid()), *(psutil.Process(stage.pid) for stage in self.pipeline.stages)]
        return {
            "live": load.live,
            "waiting": load.waiting,
            "kept_positions": load.kept,
            "preempted": load.preempted,
            "sequences": [stats.sequences for stats in self.pipeline.engine.stage_stats],
            "kv_mb": [stats.kv_bytes / 1e6 for stats in self.pipeline.engine.stage_stats],
            "dropped": [stats.dropped for stats in self.pipeline.engine.stage_stats],
            "rss_mb": [process.memory_info().rss / 1e6 for process in processes],
            "descriptors": [process.num_fds() for process in processes],
            "threads": [process.num_threads() for process in processes],
            "connections": [len(process.net_connections()) for process in processes],
        }


def measured(options: argparse.Namespace) -> Result:
    """Resources after the warm-up and at the end, and the ends of the requests."""
    if options.requests < 10:
        raise UsageError("fewer than 10 requests are too few", "give more --requests")
    trial = LeakTrial(options)
    began_s = time.perf_counter()
    try:
        trial.run(max(1, options.requests // 10))
        before = trial.held()
        trial.run(options.requests - trial.asked)
        after = trial.held()
    finally:
        trial.pipeline.close()
    return {
        "ended": dict(trial.ended),
        "tokens": trial.tokens,
        "reused_tokens": trial.reused,
        "seconds": time.perf_counter() - began_s,
        "before": before,
        "after": after,
        "grown": list(grown(before, after, options.tolerance)),
    }


def grown(before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float) -> Iterator[str]:
    """Names of the resources that have grown."""
    for name in ("live", "waiting"):
        if after[name]:
            yield name
    for name in ("descriptors", "threads", "connections"):
        if any(b > a for a, b in zip(before[name], after[name], strict=True)):
            yield name
    if any(b > a * (1 + tolerance) for a, b in zip(before["rss_mb"], after["rss_mb"], strict=True)):
        yield "rss_mb"


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    ended = ", ".join(f"{number} {kind}" for kind, number in result["ended"].items())
    yield f"{result['requests']} requests in {result['seconds']:.0f} s: {ended}; {result['tokens']} tokens"
    for name, before in result["before"].items():
        yield f"{name:15} {_shown(before)} -> {_shown(result['after'][name])}"
    yield f"grown: {', '.join(result['grown']) or 'nothing'}"


def _shown(value: Any) -> str:
    return ", ".join(f"{one:.0f}" for one in (value if isinstance(value, list) else [value]))


def faults(_: argparse.Namespace, result: Result) -> EdgeppError | None:
    """Error of a run in which a resource has grown; None otherwise."""
    if not result["grown"]:
        return None
    return EdgeppError(f"something has grown: {', '.join(result['grown'])}", "run again with more --requests")


if __name__ == "__main__":
    script("leaks", parse, measured, lines, faults)
