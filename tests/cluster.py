"""Real `edgepp` processes on loopback: nodes started and stopped, and the command run as a user would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.waiting import PATIENCE_S

EDGEPP = [sys.executable, "-m", "edgepp"]


@dataclass
class Node:
    """One `edgepp join` and what it said when it was ready."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    @property
    def stage(self) -> psutil.Process:
        """The node's stage process."""
        (child,) = psutil.Process(self.process.pid).children()
        return child


@contextmanager
def node(model: str | Path, layers: str, *options: str) -> Iterator[Node]:
    """A node that has loaded its layers; gone when the block ends."""
    process = subprocess.Popen(
        [*EDGEPP, "join", "-m", str(model), "--layers", layers, "--threads", "1", "--json", *options],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the node for layers {layers} ended with status {process.wait(PATIENCE_S)}"
        yield Node(process, json.loads(line))
    finally:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.send_signal(signal.SIGCONT)  # a test may have stopped it
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def nodes(model: str | Path, ranges: Sequence[str], *options: str) -> Iterator[list[Node]]:
    """Several nodes at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(node(model, layers, *options)) for layers in ranges]


def edgepp(
    *arguments: str, stdin: str | None = None, timeout_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*EDGEPP, *arguments],
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | {"COLUMNS": "200"},
        check=False,
    )


def chat(*arguments: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
    """What `edgepp chat --json` answers."""
    done = edgepp("chat", *arguments, "--json", timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def peers(started: Sequence[Node]) -> list[str]:
    """The `--peer` options for nodes."""
    return [text for one in started for text in ("--peer", one.address)]
