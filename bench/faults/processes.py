"""A coordinator and three nodes on this machine, as processes that can be killed, stopped and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from edgepp.child_process import python_command
from edgepp.coordinator.client import connect_coordinator
from edgepp.errors import EdgeppError

NODES = ("two", "three", "four")
_START_S = 180.0
_MARKED = Path(__file__).with_name("marked_edgepp.py")
USUAL = ("--exact", "--max-sequences", "6", "--context", "512")
"""Options of `edgepp serve`."""


class EdgeppProcess:
    """One `edgepp serve` or `edgepp join` with its own configuration."""

    def __init__(self, folder: Path, name: str, *command: str, **env: str) -> None:
        """``env`` are further environment variables; with EDGEPP_MARKS, the process notes the steps of recovery."""
        marked = "EDGEPP_MARKS" in {**os.environ, **env}
        program = [sys.executable, "-P", str(_MARKED)] if marked else python_command("edgepp")
        self.name, self._command = name, [*program, *command]
        self._env = {**os.environ, "EDGEPP_HOME": str(folder / name), "EDGEPP_NAME": name, **env}
        self._log = (folder / f"{name}.log").open("ab")
        self.start()

    def start(self) -> None:
        """Start the process."""
        self.process = subprocess.Popen(
            self._command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def kill(self) -> None:
        """Kill the process, but not its children."""
        self.process.kill()
        self.process.wait()

    @property
    def stages(self) -> list[psutil.Process]:
        """Stage processes of this process."""
        with suppress(psutil.NoSuchProcess):
            return [
                child
                for child in psutil.Process(self.process.pid).children()
                if any(part == "stage" or "edgepp.stage_process.main" in part for part in child.cmdline())
            ]
        return []

    @property
    def tree(self) -> list[psutil.Process]:
        """This process and all that it started."""
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()
        self._log.close()


class FaultyCluster:
    """The cluster; its addresses stay the same when the coordinator starts again."""

    def __init__(self, folder: Path, model: str, stack: ExitStack, options: Sequence[str] = USUAL) -> None:
        """Start the cluster, whose coordinator has ``options``; ``complete`` says when all nodes have layers."""
        self.folder = folder
        port, http = _free_ports(2)
        self.url = f"http://127.0.0.1:{http}/v1"
        serve = ("serve", "-m", model, "--no-stage", *options)
        addresses = ("--listen", f"127.0.0.1:{port}", "--http", f"127.0.0.1:{http}")
        self.coordinator = EdgeppProcess(folder, "one", *serve, *addresses)
        stack.callback(self.coordinator.close)
        os.environ["EDGEPP_HOME"] = str(folder / "one")
        self.wait("the coordinator", self._answers)
        with connect_coordinator() as line:
            token = str(line.call("token", {})["token"])
        join = ("join", "--peer", f"127.0.0.1:{port}", "--memory", "1GB", "--threads", "1")
        self.nodes = []
        for name in NODES:
            self.nodes.append(EdgeppProcess(folder, name, *join, EDGEPP_TOKEN=token))
            stack.callback(self.nodes[-1].close)

    @property
    def members(self) -> list[EdgeppProcess]:
        """Coordinator and nodes."""
        return [self.coordinator, *self.nodes]

    def _answers(self) -> bool:
        """Whether the coordinator answers.

        Raises:
            EdgeppError: it has ended.
        """
        if self.coordinator.process.poll() is not None:
            log = (self.folder / "one.log").read_text(encoding="utf-8", errors="replace")
            raise EdgeppError(f"the coordinator has ended: {log[-500:]}")
        return bool(self.status())

    def status(self) -> dict[str, Any]:
        """Status of the cluster; empty if the coordinator does not answer."""
        with suppress(EdgeppError), connect_coordinator() as line:
            return dict(line.status)
        return {}

    def complete(self) -> bool:
        """Whether the cluster is ready and all nodes have layers."""
        state = self.status()
        return bool(state) and state["state"] == "ready" and {s["node"] for s in state["stages"]} == set(NODES)

    def idle(self) -> bool:
        """Whether a pipeline is open, and no request is live or waits."""
        engine = self.status().get("engine") or {"live": None, "waiting": None}
        return (engine["live"], engine["waiting"]) == (0, 0)

    def wait(self, what: str, condition: Callable[[], bool], within_s: float = _START_S) -> float:
        """Wait for a condition; returns the seconds that it took.

        Raises:
            EdgeppError: the condition did not come true in time.
        """
        began_s = time.monotonic()
        while not condition():
            if time.monotonic() - began_s > within_s:
                raise EdgeppError(f"{what} did not happen within {within_s:.0f} s", f"see {self.folder}/*.log")
            time.sleep(0.3)
        return time.monotonic() - began_s

    def orphans(self) -> list[str]:
        """Processes of this cluster whose parent has gone, each with its command."""
        known = {process.pid for member in self.members for process in member.tree}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid not in known and process.status() != psutil.STATUS_ZOMBIE:
                    home = process.environ().get("EDGEPP_HOME", "")
                    if process.pid != os.getpid() and home.startswith(f"{self.folder}{os.sep}"):
                        found.append(" ".join(process.cmdline())[:200])
        return found

    def held(self) -> dict[str, Any]:
        """Resources of the cluster, when no request is running."""
        state = self.status()
        trees = {member.name: member.tree for member in self.members}
        return {
            "live": state["engine"]["live"],
            "kept_positions": state["engine"]["kept_positions"],
            "sequences": [stage.get("sequences") for stage in state["stages"]],
            "kv_mb": [(stage.get("kv_bytes") or 0) / 1e6 for stage in state["stages"]],
            "processes": {name: len(tree) for name, tree in trees.items()},
            "descriptors": {name: tree[0].num_fds() for name, tree in trees.items()},
            "threads": {name: tree[0].num_threads() for name, tree in trees.items()},
            "rss_mb": {name: tree[0].memory_info().rss / 1e6 for name, tree in trees.items()},
        }


def stop(processes: list[psutil.Process], seconds: float) -> None:
    """Stop processes for some time, as a lid that is closed does."""
    try:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
