"""What the scripts share: sides in processes of their own, rounds, medians and spread, machine and commit.

A side is one way to do the work that is measured. All sides are alive during the whole measurement and are asked in
turn, so that a machine that slows down slows all of them. METHODOLOGY.md defines the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil
from sides import RATES, Result

from edgepp.benchmark.machine import commit, machine
from edgepp.benchmark.report import rounded
from edgepp.errors import EdgeppError, UsageError
from edgepp.node.compute_policy import stage_environment

STOP_S = 5.0
_BENCH = Path(__file__).resolve().parent


Work = Callable[[int], Result]
"""Does a side's work once; is given the number of the round, 0 to warm up."""


class Arguments(argparse.ArgumentParser):
    """A command line whose mistakes are told in one sentence."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--json", action="store_true", help="print only the JSON line")

    def error(self, message: str) -> NoReturn:
        """Say it and end with status 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def count(text: str) -> int:
    """A whole number of at least 1, from a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def script(main: Callable[[], None]) -> None:
    """Run a script: what is wrong becomes one sentence and a status, Ctrl-C ends it quietly."""
    try:
        main()
    except EdgeppError as error:
        say(f"error: {error}{f'; {error.hint}' if error.hint else ''}")
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def say(text: str) -> None:
    """Tell how it goes, on standard error."""
    print(text, file=sys.stderr, flush=True)


def report(result: Mapping[str, Any], table: Iterable[str], *, json_only: bool) -> None:
    """Print the table and, last, the result with machine and commit as one JSON line."""
    for line in () if json_only else table:
        print(line)
    print(json.dumps(rounded({**result, "machine": machine(), "commit": commit()})), flush=True)


class Side:
    """A child process that does the work when it is asked; ``sides.py`` is its program. Close it."""

    def __init__(self, name: str, config: Mapping[str, Any], python: str = sys.executable) -> None:
        """Start it; ``config`` names the kind of side and says what it needs, see ``sides``.

        Raises:
            UsageError: there is no such interpreter.
        """
        self.name = name
        try:
            self._process = subprocess.Popen(
                [python, str(_BENCH / "sides.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=stage_environment(config["threads"]),
            )
        except OSError as error:
            raise UsageError(f"{python} is not a Python interpreter: {error.strerror}") from error
        self._ask(config)

    def wait_ready(self) -> dict[str, Any]:
        """Wait until it has loaded; what it says of itself.

        Raises:
            EdgeppError: it cannot work.
        """
        return self._answer()

    def run(self, prompt: Sequence[int], generate: int) -> Result:
        """Let it answer ``prompt`` with ``generate`` tokens.

        Raises:
            EdgeppError: it failed or died.
        """
        self._ask({"prompt": list(prompt), "generate": generate})
        return self._answer()

    def work(self, vocabulary: int, prompt_tokens: int, generate: int) -> Work:
        """What it does each round: answer that round's prompt."""
        return lambda turn: self.run(prompt(vocabulary, prompt_tokens, turn), generate)

    @property
    def resident_bytes(self) -> int:
        """Memory of its process and of those that it started."""
        return sum(process.memory_info().rss for process in self._family())

    def close(self) -> None:
        """End it and whatever it started; by force what does not go within seconds."""
        family = self._family()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # it died with our last words unread
                if pipe is not None:
                    pipe.close()
        psutil.wait_procs(family, STOP_S)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _family(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _ask(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died; its answer says why
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"died with status {self._process.wait()}"}
        if "error" in answer:
            raise EdgeppError(f"{self.name}: {answer['error']}")
        return answer


def interleave(work: Mapping[str, Work], rounds: int) -> dict[str, list[Result]]:
    """Warm each side up once, then ask them in turn, round after round; each side's results in that order."""
    results: dict[str, list[Result]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            result = run(turn)
            if turn:
                results[name].append(result)
            which = f"round {turn} of {rounds}" if turn else "warm-up"
            say(f"{which}: {name}: prefill {result['prefill_tok_s']:.1f}, decode {result['decode_tok_s']:.1f} tok/s")
    return results


def prompt(vocabulary: int, tokens: int, turn: int) -> list[int]:
    """The prompt of one round: fixed, but another each round, so that no cache of prompts can help."""
    numbers = random.Random(turn)  # noqa: S311 - not a secret
    return [numbers.randrange(vocabulary) for _ in range(tokens)]


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Median of each rate, and ``spread``: its smallest and largest value."""
    columns = {rate: [float(result[rate]) for result in results] for rate in RATES}
    medians: dict[str, Any] = {rate: statistics.median(column) for rate, column in columns.items()}
    return medians | {"spread": {rate: [min(column), max(column)] for rate, column in columns.items()}}


def rate_columns(side: Mapping[str, Any] | None = None) -> str:
    """The rates of a ``summary`` as part of a table's line, or their names."""
    if side is None:
        return "".join(f"{name:>22}" for name in ("prefill tok/s", "decode tok/s", "e2e tok/s", "first token s"))
    spread = side["spread"]
    cells = (f"{side[rate]:.4g} ({spread[rate][0]:.3g}-{spread[rate][1]:.3g})" for rate in RATES)
    return "".join(f"{cell:>22}" for cell in cells)


def ratio_text(ratios: Mapping[str, Any]) -> str:
    """A ``ratio`` in words."""
    return ", ".join(
        f"{name} {ratios[name]:.3g} ({low:.3g}-{high:.3g})" for name, (low, high) in ratios["spread"].items()
    )


def ratio(over: Sequence[Result], under: Sequence[Result], names: Sequence[str]) -> dict[str, Any]:
    """Median over the rounds of ``over``'s rate divided by ``under``'s in the same round, and its ``spread``."""
    columns = {
        name: [a[f"{name}_tok_s"] / b[f"{name}_tok_s"] for a, b in zip(over, under, strict=True)] for name in names
    }
    medians: dict[str, Any] = {name: statistics.median(column) for name, column in columns.items()}
    return medians | {"spread": {name: [min(column), max(column)] for name, column in columns.items()}}


def share_cpus(groups: int, each: int) -> list[list[int]] | None:
    """Disjoint groups of ``each`` CPUs to pin to, cores before their hyper-threads; None where that cannot be."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cpus = sorted(os.sched_getaffinity(0), key=lambda cpu: (_place_in_core(cpu), cpu))
    if len(cpus) < groups * each:
        return None
    return [cpus[group * each : (group + 1) * each] for group in range(groups)]


def _place_in_core(cpu: int) -> int:
    """0 for a core's first hardware thread, 1 for its second, ..."""
    file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        parts = [part.split("-") for part in file.read_text(encoding="ascii").strip().split(",")]
    except OSError:
        return 0
    siblings = [n for part in parts for n in range(int(part[0]), int(part[-1]) + 1)]
    return siblings.index(cpu)
