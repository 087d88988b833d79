"""Real `edgepp` processes on loopback: nodes started and stopped, and the command run as a user would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgepp.coordinator.client import connect_coordinator
from edgepp.errors import PeerLost
from tests.waiting import PATIENCE_S, eventually

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
    with nodes(model, [layers], *options) as (one,):
        yield one


@contextmanager
def nodes(model: str | Path, ranges: Sequence[str], *options: str) -> Iterator[list[Node]]:
    """Several nodes that have loaded their layers, started and ended together."""
    started: list[subprocess.Popen[str]] = []
    try:
        for layers in ranges:
            command = [*EDGEPP, "join", "-m", str(model), "--layers", layers, "--threads", "1", "--json", *options]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True))
        yield [_ready(process, layers) for process, layers in zip(started, ranges, strict=True)]
    finally:
        for process in started:
            _interrupt(process)
        for process in started:
            _await_end(process)


def _ready(process: subprocess.Popen[str], layers: str) -> Node:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the node for layers {layers} ended with status {process.wait(PATIENCE_S)}"
    return Node(process, json.loads(line))


def _interrupt(process: subprocess.Popen[str]) -> None:
    with suppress(psutil.NoSuchProcess):  # ended meanwhile
        for child in psutil.Process(process.pid).children():
            child.send_signal(signal.SIGCONT)  # a test may have stopped it
    process.send_signal(signal.SIGINT)


def _await_end(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


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


@dataclass
class Running:
    """A command that prints JSON lines until it is stopped."""

    process: subprocess.Popen[str]

    def until(self, event: str) -> dict[str, Any]:
        """The next line of this kind; fails when the command ends first."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if (said := json.loads(line))["event"] == event:
                found: dict[str, Any] = said
                return found
        raise AssertionError(f"ended with {self.process.wait()} before '{event}'")


@dataclass
class Machine:
    """A home directory of its own, as another machine would have."""

    home: Path
    name: str

    def env(self, **more: str) -> dict[str, str]:
        return (
            os.environ | {"EDGEPP_HOME": str(self.home / self.name), "EDGEPP_NAME": self.name, "COLUMNS": "200"} | more
        )

    def run(self, *arguments: str, timeout_s: float = PATIENCE_S, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*EDGEPP, *arguments], input="", capture_output=True, text=True, timeout=timeout_s, env=self.env(**env)
        )

    def json(self, *arguments: str, timeout_s: float = PATIENCE_S, **env: str) -> dict[str, Any]:
        done = self.run(*arguments, timeout_s=timeout_s, **env)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def status(self) -> dict[str, Any]:
        """The state of its cluster, which this process asks for: `edgepp status` takes a second to start."""

        def look() -> dict[str, Any] | None:
            with suppress(PeerLost), pytest.MonkeyPatch.context() as patch:
                patch.setenv("EDGEPP_HOME", self.env()["EDGEPP_HOME"])
                with connect_coordinator() as client:
                    return client.status
            return None

        found = eventually(f"the coordinator answers {self.name}", look)
        assert found is not None
        return found

    @contextmanager
    def running(self, *arguments: str, **env: str) -> Iterator[Running]:
        process = subprocess.Popen(
            [*EDGEPP, *arguments, "--threads", "1", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=self.env(**env),
        )
        try:
            yield Running(process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE_S)


@contextmanager
def serving(machine: Machine, model: Path, *options: str) -> Iterator[tuple[Running, str]]:
    """`edgepp serve` that is ready to answer, and its address."""
    with machine.running("serve", "-m", str(model), "--listen", "127.0.0.1:0", *options) as served:
        address = served.until("listening")["address"]
        if "--no-stage" not in options:
            served.until("ready")
        yield served, str(address)


def wait_for(machine: Machine, stages: int) -> dict[str, Any]:
    """The cluster's state once it is ready with so many stages."""

    def look() -> dict[str, Any] | None:
        state = machine.status()
        return state if state["state"] == "ready" and len(state["stages"]) == stages else None

    found = eventually(f"ready with {stages} stages", look)
    assert found is not None
    return found
