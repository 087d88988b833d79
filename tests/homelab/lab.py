"""The steps on all machines: check, install, pair, test, collect, clean up."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from tests.builders.distributions import build_wheel
from tests.homelab.checks import PORT, Facts, check
from tests.homelab.ssh import HostError, Remote

T = TypeVar("T")

READY_S = 300.0
_LOOK_S = 2.0


@dataclass
class Lab:
    """Some machines, the first of which coordinates."""

    remotes: Sequence[Remote]
    out: Path
    say: Callable[[str], None]
    model: str = "smollm2-135m"
    cache: str | None = None
    """Folder on the machines where models are kept; None for each one's own."""
    facts: dict[str, Facts] = field(default_factory=dict)
    took_s: dict[str, float] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)
    alone: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Report of each machine but the first, whose arithmetic the cluster's report has."""

    def check(self) -> list[HostError]:
        """Look at all machines at once; what keeps some from taking part."""
        first = self.remotes[0].name

        def look(remote: Remote) -> HostError | None:
            try:
                self.facts[remote.name] = check(remote, needs_port=remote.name == first)
            except HostError as error:
                return error
            return None

        return [error for error in self._each(look) if error is not None]

    def run(self, wheels: list[Path]) -> None:
        """All steps after ``check``; what was started and copied is gone at the end, whatever happens.

        Raises:
            HostError: a step failed on a machine.
        """
        tag = secrets.token_hex(4)
        with ExitStack() as stack:
            for remote in self.remotes:
                facts = self.facts[remote.name]
                remote.python, remote.folder = facts.python, f"{facts.home}/.edgepp-homelab-{tag}-{remote.name}"
                stack.callback(self._clean, remote)
            self._timed("install", lambda: self._each(lambda remote: self._install(remote, wheels)))
            logs = [stack.enter_context((self.out / f"{one.name}.log").open("w")) for one in self.remotes]
            self._timed("pair", lambda: self._pair(logs))
            self._timed("test", self._test)
            self._timed("collect", self._collect)

    def _install(self, remote: Remote, wheels: list[Path]) -> None:
        self.say(f"{remote.name}: installing")
        remote.run(f"mkdir -m 700 {remote.folder} {remote.folder}/home {remote.folder}/wheels")
        remote.send(wheels, f"{remote.folder}/wheels")
        source = f"--find-links {remote.folder}/wheels" + (" --no-index" if len(wheels) > 1 else "")
        own = next(wheel.name for wheel in wheels if wheel.name.startswith("edgepp-"))
        remote.run(
            f"set -e; {remote.python} -m venv {remote.folder}/venv\n"
            # Without --no-compile pip compiles thousands of modules that no command imports.
            f"{remote.folder}/venv/bin/python -m pip --disable-pip-version-check install --quiet --no-compile {source}"
            f" {remote.folder}/wheels/{own}",
            900.0,
        )

    def _edgepp(self, remote: Remote, *arguments: str) -> str:
        cache = f"EDGEPP_CACHE={self.cache}" if self.cache else ""
        return remote.edgepp(*arguments).replace("$EDGEPP_ENV", cache)

    def _pair(self, logs: Sequence[IO[str]]) -> None:
        first, *others = self.remotes
        self.say(f"{first.name}: serving {self.model}")
        serve = ("serve", "-m", self.model, "--exact", "--http", "off", "--listen", f"*:{PORT}", "--json")
        self._until(first, first.start(self._edgepp(first, *serve), logs[0]).stdout, "listening", logs[0])
        for remote, log in zip(others, logs[1:], strict=True):
            code = json.loads(first.run(self._edgepp(first, "invite", "--json")))["code"]
            self.say(f"{remote.name}: joining")
            self._until(remote, remote.start(self._edgepp(remote, "join", code, "--json"), log).stdout, "joined", log)
        self._wait_ready()

    def _until(self, remote: Remote, lines: IO[str] | None, event: str, log: IO[str]) -> None:
        for line in lines or ():
            log.write(line)
            told = json.loads(line) if line.startswith("{") else {}
            if told.get("event") == event:
                return
            if told.get("event") == "error":
                raise HostError(remote.name, str(told["message"]), str(told["hint"]))
        log.flush()
        raise HostError(remote.name, f"edgepp ended before '{event}'", f"see {log.name}")

    def _wait_ready(self) -> None:
        first, deadline = self.remotes[0], time.monotonic() + READY_S
        wanted = {remote.name for remote in self.remotes}
        while time.monotonic() < deadline:
            status = json.loads(first.run(self._edgepp(first, "status", "--json"), 60.0))
            if status["state"] == "ready" and {stage["node"] for stage in status["stages"]} == wanted:
                return
            time.sleep(_LOOK_S)
        raise HostError(first.name, f"no pipeline over all machines within {READY_S:.0f} s", "see its log")

    def _test(self) -> None:
        first, *others = self.remotes
        self.say("testing each machine alone")
        alone = self._each(lambda remote: self._selftest(remote, "alone", "--only", "accuracy"), others)
        self.alone = {remote.name: report for remote, report in zip(others, alone, strict=True)}
        self.say("testing the cluster")
        self.cluster = self._selftest(first, "cluster", "--cluster")

    def _selftest(self, remote: Remote, name: str, *arguments: str) -> dict[str, Any]:
        command = self._edgepp(remote, "selftest", "--json", "--report", f"{remote.folder}/report/{name}", *arguments)
        told = remote.run(f"({command}) || [ $? = 1 ]", 1800.0).splitlines()[-1]
        report: dict[str, Any] = json.loads(told)
        if report.get("event") == "error":
            raise HostError(remote.name, report["message"], report["hint"])
        return report

    def _collect(self) -> None:
        self._each(lambda remote: remote.fetch(f"{remote.folder}/report", self.out / remote.name))

    def _clean(self, remote: Remote) -> None:
        remote.stop()
        if not remote.folder.rpartition("/")[2].startswith(".edgepp-homelab-"):
            raise ValueError(f"{remote.folder} is not a folder of the home lab")
        try:
            remote.run(f"rm -rf {remote.folder}", 120.0)
        except HostError as error:
            self.say(f"not cleaned up: {error}; remove {remote.folder} there")

    def _each(self, act: Callable[[Remote], T], remotes: Sequence[Remote] | None = None) -> list[T]:
        chosen = self.remotes if remotes is None else remotes
        with ThreadPoolExecutor(max(1, len(chosen))) as pool:
            return list(pool.map(act, chosen))

    def _timed(self, what: str, act: Callable[[], object]) -> None:
        began_s = time.monotonic()
        act()
        self.took_s[what] = time.monotonic() - began_s


def own_wheel(folder: Path) -> Path:
    """The wheel of this clone, built in ``folder``.

    Raises:
        HostError: it cannot be built.
    """
    try:
        return build_wheel(folder)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or str(error)).strip().splitlines()[-1]
        raise HostError("here", f"no wheel was built: {last}", "`make dist` says more") from error
