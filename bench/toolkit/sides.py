"""Sides of a comparison: engines in their own processes, all alive during the whole measurement.

The sides answer in turn, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from bench.toolkit.figures import cell, prompt
from bench.toolkit.side_program import RATES, RunRates
from edgepp.errors import EdgeppError, UsageError
from edgepp.stage_process.compute_policy import stage_environment

_STOP_S = 5.0
_PROGRAM = Path(__file__).with_name("side_program.py").resolve()
_CLONE = _PROGRAM.parents[2]
RATE_HEADINGS = ("prefill tok/s", "decode tok/s", "e2e tok/s", "first token s")


class Side:
    """A child process that runs ``side_program`` with one engine. Must be closed."""

    def __init__(self, name: str, config: Mapping[str, Any], python: str = sys.executable) -> None:
        """Start the process; ``config`` has the kind of engine (``side_program.KINDS``) and its settings.

        Raises:
            UsageError: ``python`` is not an interpreter.
        """
        self.name = name
        try:
            self._process = subprocess.Popen(
                [python, str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**stage_environment(config["threads"]), "PYTHONPATH": _import_path()},
            )
        except OSError as error:
            raise UsageError(f"{python} is not a Python interpreter: {error.strerror}") from error
        self._ask(config)

    def wait_ready(self) -> dict[str, Any]:
        """Wait until the engine is loaded; returns its description.

        Raises:
            EdgeppError: the engine could not be loaded.
        """
        return self._answer()

    def run(self, prompt: Sequence[int], generate: int, **more: Any) -> RunRates:
        """Answer ``prompt`` with ``generate`` tokens; ``more`` are arguments that this engine alone takes.

        Raises:
            EdgeppError: the engine failed or the process ended.
        """
        self._ask({"prompt": list(prompt), "generate": generate, **more})
        return self._answer()

    def round(self, vocabulary: int, prompt_tokens: int, generate: int, turn: int, **more: Any) -> RunRates:
        """Answer the prompt of one round."""
        return self.run(prompt(vocabulary, prompt_tokens, turn), generate, **more)

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the process and its descendants."""
        return sum(process.memory_info().rss for process in self._family())

    def close(self) -> None:
        """End the process and its descendants; kill those that do not end within seconds."""
        family = self._family()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # the process ended before it read everything
                if pipe is not None:
                    pipe.close()
        psutil.wait_procs(family, _STOP_S)
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
        with suppress(BrokenPipeError):  # the process ended; ``_answer`` reports why
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"ended with status {self._process.wait()}"}
        if "error" in answer:
            raise EdgeppError(f"{self.name}: {answer['error']}")
        return answer


def _import_path() -> str:
    """PYTHONPATH with the clone first, so that another interpreter can import this package."""
    return os.pathsep.join(filter(None, (str(_CLONE), os.environ.get("PYTHONPATH"))))


def rates_text(result: RunRates) -> str:
    """The two main rates of one run, for progress."""
    return f"prefill {result['prefill_tokens_per_s']:.1f}, decode {result['decode_tokens_per_s']:.1f} tok/s"


def rate_cells(side: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of a table for all rates of ``figures.medians``."""
    return tuple(cell(side, rate, ".4g") for rate in RATES)
