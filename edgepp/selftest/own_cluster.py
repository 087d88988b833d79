"""A cluster of two nodes on this machine, for the selftest alone: loopback, own keys, gone with the selftest."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Collection, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from edgepp.child_process import python_command
from edgepp.errors import EdgeppError
from edgepp.python_api import Connection, connect
from edgepp.selftest.subject import Subject
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.wire.address import Address

COORDINATOR, NODE = "selftest-1", "selftest-2"
_END_S = 8.0


class OwnCluster(Subject):
    """Two members as child processes, each with a folder of its own as ``EDGEPP_HOME``."""

    def __init__(self, model: str, say: Callable[[str], None]) -> None:
        super().__init__(model, own=True)
        self._say = say
        self._stack = AsyncExitStack()
        self._members: dict[str, Process] = {}
        self._home = ""
        self.address = ""
        """``HOST:PORT`` of the coordinator."""

    async def open(self) -> None:
        """Start both members, pair them, and wait until they answer together.

        Raises:
            EdgeppError: a member cannot run.
        """
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepp-selftest-")))
            self._home = str(folder / COORDINATOR)
            threads = ComputePolicy.shared(None, 2).threads
            self._say("starting a cluster of two nodes here")
            serve = {"role": "serve", "model": self.model, "threads": threads}
            listening = await self._start(stack, folder, COORDINATOR, serve)
            self.address = listening["address"]
            task = {"role": "join", "code": listening["code"], "peer": self.address, "threads": threads}
            await self._start(stack, folder, NODE, task)
            self._stack = stack.pop_all()

    async def close(self) -> None:
        """End both members, even one that is stopped."""
        await self._stack.aclose()

    async def ready(self, nodes: Collection[str] = (COORDINATOR, NODE)) -> None:
        """Wait until it answers over both nodes."""
        await super().ready(nodes)

    @property
    def peers(self) -> list[Address]:
        """The coordinator's address."""
        return [Address.parse(self.address)]

    def connection(self) -> Connection:
        """A connection to the coordinator; only inside of ``at_home``."""
        return connect(self.address)

    @contextmanager
    def at_home(self) -> Iterator[None]:
        """Let this process speak as the coordinator's machine, for as long as the block."""
        former = os.environ.get("EDGEPP_HOME")
        os.environ["EDGEPP_HOME"] = self._home
        try:
            yield
        finally:
            if former is None:
                del os.environ["EDGEPP_HOME"]
            else:
                os.environ["EDGEPP_HOME"] = former

    def processes(self, name: str) -> list[psutil.Process]:
        """A member and its stage processes."""
        try:
            member = psutil.Process(self._members[name].pid)
            return [member, *member.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    async def _start(self, stack: AsyncExitStack, folder: Path, name: str, task: dict[str, Any]) -> dict[str, Any]:
        """Start a member and wait for its first report."""
        home = folder / name
        home.mkdir(mode=0o700)
        environment = os.environ | {"EDGEPP_HOME": str(home), "EDGEPP_NAME": name}
        environment.pop("EDGEPP_TOKEN", None)
        log = stack.enter_context((folder / f"{name}.log").open("w+", encoding="utf-8"))
        child = self._members[name] = await asyncio.create_subprocess_exec(
            *python_command("edgepp.selftest.member"), stdin=PIPE, stdout=PIPE, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip
        stack.push_async_callback(self._end, name)
        stdin, stdout = child.stdin, child.stdout
        if stdin is None or stdout is None:
            raise EdgeppError("a member has no pipe")
        stdin.write(json.dumps(task).encode() + b"\n")
        line = await stdout.readline()
        told: dict[str, Any] = json.loads(line) if line else {"event": "error", "message": _tail(Path(log.name))}
        if told["event"] == "error":
            raise EdgeppError(f"{name} cannot run: {told['message']}", told.get("hint") or "see `edgepp doctor`")
        return told

    async def _end(self, name: str) -> None:
        child = self._members[name]
        started = self.processes(name)
        signal_all(started, psutil.Process.resume)
        if child.stdin is not None:
            child.stdin.close()
        try:
            await asyncio.wait_for(child.wait(), _END_S)
        except TimeoutError:
            signal_all(started, psutil.Process.kill)
            await child.wait()
        signal_all(started, psutil.Process.kill)  # stage processes that outlived their member


def signal_all(processes: list[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    """``act`` on each of ``processes`` that still runs."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            act(process)


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "it ended at once"
