"""Members of a cluster on the hosts of a test: `edgepp serve` and `edgepp join` as they run, and what they say."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.netns.net import Host
from tests.waiting import PATIENCE_S, eventually

MODEL = "smollm2-135m"
ASKING = Path(__file__).with_name("asking.py")
Status = dict[str, Any]


class Daemon:
    """`edgepp serve` or `edgepp join` with ``--json`` on a host."""

    def __init__(self, host: Host, *args: str) -> None:
        self.host = host
        self._log = host.log()
        with self._log.open("w") as file:
            self.process = host.popen_edgepp(*args, "--json", stdout=file, stderr=subprocess.STDOUT)

    @property
    def said(self) -> str:
        """All that it printed so far."""
        return self._log.read_text()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Its events of one kind: listening, joined, ready or note."""
        lines = [line for line in self.said.splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def expect(self, kind: str, within_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for the first event of a kind."""

        def look() -> list[dict[str, Any]]:
            found = self.events(kind)
            assert found or self.process.poll() is None, f"it ended:\n{self.said}"
            return found

        return eventually(f"event '{kind}'", look, within_s)[0]

    def says(self, text: str, within_s: float = PATIENCE_S) -> None:
        """Wait until it has printed ``text``."""
        eventually(f"'{text}' in what it said", lambda: text in self.said, within_s)

    def refused(self, within_s: float = PATIENCE_S) -> str:
        """Wait for its end, which is to be an error; what it said."""
        assert self.process.wait(within_s) != 0, self.said
        assert "Traceback" not in self.said
        return self.said

    @property
    def processes(self) -> list[psutil.Process]:
        """The agent and its stages."""
        agent = psutil.Process(self.process.pid)
        return [agent, *agent.children(recursive=True)]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent and its stages."""
        for process in self.processes:
            process.send_signal(number)

    def end(self) -> None:
        """Ctrl-C, which is to end it and its stages in time."""
        started = self.processes
        self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE_S)
        _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
        assert not alive, f"left behind: {alive}"


class Asker:
    """A connection of a host to its cluster."""

    def __init__(self, host: Host) -> None:
        command = (sys.executable, str(ASKING))
        self._process = host.popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tell(self, line: str) -> None:
        """Say something, to be answered."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next answer."""
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))

    def status(self) -> Status:
        """The cluster's state; empty where the coordinator is not there."""
        self.tell("status")
        said = self.hear()
        return {} if "error" in said else said

    def ask(self, prompt: str, tokens: int) -> dict[str, Any]:
        """An answer, or what kept it from being given."""
        self.tell(f"ask {tokens} {prompt}")
        return self.hear()

    def wait(self, what: str, accept: Callable[[Status], Any], within_s: float = PATIENCE_S) -> Status:
        """The first status that is accepted."""
        seen: Status = {}

        def look() -> bool:
            nonlocal seen
            seen = self.status()
            return bool(seen) and bool(accept(seen))

        try:
            eventually(what, look, within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlast seen: {json.dumps(seen)}") from error
        return seen


@dataclass
class Member:
    """What a status says of one node."""

    state: str
    address: str
    layers: list[tuple[int, int]]
    pids: list[int]


def members(status: Status) -> dict[str, Member]:
    """The nodes of a status, by name."""
    found = {node["name"]: Member(node["state"], node["address"], [], []) for node in status["nodes"]}
    for stage in status["stages"]:
        found[stage["node"]].layers.append(tuple(stage["layers"]))
        found[stage["node"]].pids.append(stage["pid"])
    return found


def answers_with(names: Sequence[str]) -> Callable[[Status], bool]:
    """Whether a cluster is ready and its stages are on exactly these nodes."""
    return lambda status: status["state"] == "ready" and {stage["node"] for stage in status["stages"]} == set(names)


def serve(host: Host, *args: str) -> Daemon:
    """A coordinator that listens."""
    daemon = Daemon(host, "serve", "-m", MODEL, "--threads", "1", *args)
    daemon.expect("listening")
    return daemon


def invite(host: Host) -> str:
    """An invitation's code."""
    done = host.edgepp("invite", "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["code"])


def join(host: Host, *args: str) -> Daemon:
    """A node on its way in."""
    return Daemon(host, "join", "--threads", "1", *args)


def chat(host: Host, prompt: str, tokens: int, *args: str) -> dict[str, Any]:
    """What `edgepp chat --json` answers."""
    done = host.edgepp("chat", "-p", prompt, "-n", str(tokens), "--temperature", "0", "--json", *args)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))
