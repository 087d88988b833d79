"""A cluster on this machine under kills and cancellations: every answer is right or ends in an error that names a part.

    python -m bench.kills --model smollm2-135m --minutes 10

A coordinator and two joined nodes run with --exact. Clients ask questions whose tokens a single process computed
before, and cancel some; meanwhile stage processes, and sometimes a whole node, are killed, and nodes are started again.
The script fails on a wrong token, an error that names no stage or node, a node without layers at the end, or, in a run
of at least five minutes, memory that grows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from bench.toolkit.figures import slope_per_minute
from bench.toolkit.script import Arguments, Result, count, say, script
from edgepp.child_process import python_command
from edgepp.coordinator.client import connect_coordinator
from edgepp.engine.pipeline import Pipeline, PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.errors import EdgeppError
from edgepp.model.text.conversation import Conversation

_CLIENTS = 3
_ANSWER_TOKENS = 24
_KILL_S = (4.0, 12.0)
"""Shortest and longest pause between kills, in seconds."""
_NODE_SHARE = 0.2
"""Share of kills that end a whole node instead of a stage process."""
_SETTLE_S = 60.0
_JUDGED_MINUTES = 5.0
"""Minimum length of a run for which growth of memory is a fault, because a cluster fills its pools first."""
_NAMES_A_PART = re.compile(
    r"stage \d+ \(layers [\d, -]+\)|on node \w+|the coordinator at|request \d+|layers were distributed"
)
_QUESTIONS = (
    "Name three colours.",
    "What is the capital of France?",
    "Write a sentence about the sea and the wind.",
    "Count from one to ten.",
    "Why do birds sing in the morning? Answer in one sentence, and say which birds you mean by that.",
)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = Arguments(__doc__)
    parser.shared("model")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the run (%(default)s)")
    parser.add_argument("--seed", type=count, default=1, help="of kills and cancellations (%(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=1.0, help="greatest accepted growth, MB per minute (%(default)s)"
    )
    return parser.parse_args()


class EdgeppProcess:
    """One `edgepp serve` or `edgepp join` with its own configuration."""

    def __init__(self, folder: Path, name: str, *command: str, **env: str) -> None:
        self.name, self._command = name, command
        self._env = {**os.environ, "EDGEPP_HOME": str(folder / name), "EDGEPP_NAME": name, **env}
        self._log = (folder / f"{name}.log").open("ab")
        self.start()

    def start(self) -> None:
        """Start the process."""
        self.process = subprocess.Popen(
            python_command("edgepp", *self._command, "--threads", "1"),
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    @property
    def stages(self) -> list[psutil.Process]:
        """Stage processes of this process."""
        with suppress(psutil.NoSuchProcess):
            return [
                child
                for child in psutil.Process(self.process.pid).children()
                if any("edgepp.stage_process.main" in part for part in child.cmdline())
            ]
        return []

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()
        self._log.close()


class Trial:
    """A cluster, its clients, and the kills."""

    def __init__(self, options: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
        self.options, self.folder = options, folder
        self.expected = expected(options.model)
        serve = ("serve", "-m", options.model, "--listen", "127.0.0.1:0", "--memory", "1GB", "--exact")
        self.coordinator = EdgeppProcess(folder, "one", *serve)
        stack.callback(self.coordinator.close)
        os.environ["EDGEPP_HOME"] = str(folder / "one")
        self._wait("the coordinator", lambda: bool(self.status()))
        address = f"127.0.0.1:{self.status()['address'].rpartition(':')[2]}"
        with connect_coordinator() as line:
            token = str(line.call("token", {})["token"])
        self.nodes = []
        for name in ("two", "three"):
            self.nodes.append(
                EdgeppProcess(folder, name, "join", "--peer", address, "--memory", "1GB", EDGEPP_TOKEN=token)
            )
            stack.callback(self.nodes[-1].close)
        self.ended: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.killed: Counter[str] = Counter()
        self.memory: list[tuple[float, float]] = []
        """(seconds, MB) of the coordinator's process."""
        self._stop = threading.Event()

    def status(self) -> dict[str, Any]:
        """Status of the cluster; empty if the coordinator does not answer."""
        with suppress(EdgeppError), connect_coordinator() as line:
            return dict(line.status)
        return {}

    def complete(self) -> bool:
        """Whether the cluster is ready and all three nodes have layers."""
        state = self.status()
        return (
            bool(state)
            and state["state"] == "ready"
            and {s["node"] for s in state["stages"]} == {"one", "two", "three"}
        )

    def _wait(self, what: str, condition: Callable[[], bool], within_s: float = 180.0) -> float:
        began_s = time.monotonic()
        while not condition():
            if time.monotonic() - began_s > within_s:
                raise EdgeppError(f"{what} did not happen within {within_s:.0f} s", f"see {self.folder}/*.log")
            time.sleep(0.3)
        return time.monotonic() - began_s

    def run(self) -> dict[str, Any]:
        """Ask and kill for the given time; returns the result."""
        self._wait("a plan with all nodes", self.complete)
        threads = [threading.Thread(target=self._ask_repeatedly, args=(number,)) for number in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            self._kill_repeatedly(time.monotonic() + 60 * self.options.minutes)
            complete_s = self._wait("a plan with all nodes at the end", self.complete)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(_SETTLE_S)
        return {
            "ended": dict(self.ended),
            "killed": dict(self.killed),
            "errors": dict(self.errors),
            "unnamed": [text for text in self.errors if not _NAMES_A_PART.search(text)],
            "wrong": self.wrong,
            "unanswered": sum(thread.is_alive() for thread in threads),
            "ready_again_s": complete_s,
            "memory_mb": [self.memory[0][1], self.memory[-1][1]],
            "slope_mb_per_min": slope_per_minute(self.memory[len(self.memory) // 4 :]),
        }

    def _kill_repeatedly(self, until_s: float) -> None:
        draw = random.Random(self.options.seed)  # noqa: S311 - a mix, not a secret
        process, began_s = psutil.Process(self.coordinator.process.pid), time.monotonic()
        while time.monotonic() < until_s:
            time.sleep(draw.uniform(*_KILL_S))
            self.memory.append((time.monotonic() - began_s, process.memory_info().rss / 1e6))
            if draw.random() < _NODE_SHARE:
                node = draw.choice(self.nodes)
                node.process.kill()
                node.process.wait()
                time.sleep(draw.uniform(0.0, 3.0))
                node.start()
                self.killed["node"] += 1
            elif stages := draw.choice([self.coordinator, *self.nodes]).stages:
                with suppress(psutil.NoSuchProcess):
                    draw.choice(stages).kill()
                self.killed["stage"] += 1
            left_s = until_s - time.monotonic()
            say(f"{left_s:.0f} s left: killed {dict(self.killed)}, {dict(self.ended)}, {len(self.errors)} errors")

    def _ask_repeatedly(self, number: int) -> None:
        draw = random.Random(1000 * self.options.seed + number)  # noqa: S311 - a mix, not a secret
        while not self._stop.is_set():
            question = draw.choice(_QUESTIONS)
            until = draw.randrange(1, 12) if draw.random() < 0.2 else None
            try:
                self.ended[self._ask(question, until)] += 1
            except EdgeppError as error:
                self.ended["error"] += 1
                self.errors[re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", str(error))] += 1
                time.sleep(0.2)

    def _ask(self, question: str, until: int | None) -> str:
        with connect_coordinator() as line:
            answer = line.ask(Conversation.of(question), GenerateOptions(_ANSWER_TOKENS, ignore_eos=True))
            for pieces, _ in enumerate(answer, 1):
                if pieces == until:
                    answer.cancel()
        right = self.expected[question]
        if answer.token_ids != right[: len(answer.token_ids)]:
            self.wrong.append(f"{question} {answer.token_ids}")
        if answer.finish_reason == "length" and len(answer.token_ids) != len(right):
            self.wrong.append(f"{question} has {len(answer.token_ids)} tokens")
        return str(answer.finish_reason)


def expected(model: str) -> dict[str, list[int]]:
    """Tokens of a single process for each question."""
    found = {}
    with Pipeline(PipelineOptions(model, threads=1, exact=True)) as pipeline:
        for question in _QUESTIONS:
            answer = pipeline.ask(Conversation.of(question), GenerateOptions(_ANSWER_TOKENS, ignore_eos=True))
            for _ in answer:
                continue
            found[question] = answer.token_ids
    return found


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    yield f"answers: {result['ended']}; killed: {result['killed']}"
    yield f"wrong tokens: {len(result['wrong'])}; errors that name nothing: {len(result['unnamed'])}"
    yield from (f"  {number} x {text}" for text, number in result["errors"].items())
    before, after = result["memory_mb"]
    yield f"coordinator: {before:.0f} MB -> {after:.0f} MB, {result['slope_mb_per_min']:+.2f} MB per minute"
    yield f"all three nodes had layers {result['ready_again_s']:.1f} s after the last kill"


def measured(options: argparse.Namespace) -> Result:
    """Run the trial; after a fault the logs go to standard error."""
    with (
        tempfile.TemporaryDirectory(prefix="edgepp-kills-", ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        result = Trial(options, Path(folder), stack).run()
        if faults(options, result) is not None:
            for file in sorted(Path(folder).glob("*.log")):
                say(f"{file.name}: {file.read_text(encoding='utf-8', errors='replace')[-2000:]}")
        return result


def faults(options: argparse.Namespace, result: Result) -> EdgeppError | None:
    """Error of a run with a fault; None without one."""
    found = [name for name in ("wrong", "unnamed", "unanswered") if result[name]]
    grown = result["slope_mb_per_min"] > options.tolerance and options.minutes >= _JUDGED_MINUTES
    found += ["memory"] if grown else []
    if not found:
        return None
    wrong = f": {json.dumps(result['wrong'])[:300]}" if result["wrong"] else ""
    return EdgeppError(f"faults: {', '.join(found)}{wrong}", "the logs of all nodes are above")


if __name__ == "__main__":
    script("kills", parse, measured, lines, faults)
