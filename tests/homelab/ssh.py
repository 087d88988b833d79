"""Commands and files on another machine, by the system's ``ssh`` and ``scp`` without any question."""

from __future__ import annotations

import shlex
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_CONNECT_S = 10
_END_S = 15.0


class HostError(Exception):
    """Something that a host could not do, and the next step; one line each."""

    def __init__(self, host: str, what: str, do: str) -> None:
        super().__init__(f"{host}: {what}")
        self.do = do


@dataclass
class Remote:
    """One machine, named as ``ssh`` knows it."""

    name: str
    config: str | None = None
    """Configuration file for ``ssh -F``; None for the user's own."""
    folder: str = ""
    """Folder on the machine for all that is done there."""
    python: str = ""
    _running: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, script: str, timeout_s: float = 600.0) -> str:
        """Run a shell script; what it printed.

        Raises:
            HostError: the machine is not reached, or the script fails.
        """
        command = [*self._ssh(), self.name, "sh -s"]
        try:
            done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise HostError(self.name, f"no answer within {timeout_s:.0f} s", "look whether it sleeps") from None
        if done.returncode == 255:
            raise self._unreached(done.stderr)
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
            raise HostError(self.name, f"status {done.returncode}: {lines[-1]}", "see its log in the report folder")
        return done.stdout

    def start(self, command: str, log: IO[str]) -> subprocess.Popen[str]:
        """Start a command that is interrupted when ``stop`` is called, or when this process ends."""
        # The remote shell waits for the end of its input, which comes however this side ends.
        script = f"{command} & pid=$!; cat >/dev/null; kill -INT $pid; wait $pid"
        process = subprocess.Popen(
            [*self._ssh(), self.name, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,  # Ctrl-C here ends the remote command by its input, in order
        )  # fmt: skip
        self._running.append(process)
        return process

    def stop(self) -> None:
        """End all that was started, the last first."""
        for process in reversed(self._running):
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._running.clear()

    def send(self, files: list[Path], to: str) -> None:
        """Copy files into a folder of the machine.

        Raises:
            HostError: the copy fails.
        """
        self._copy([*map(str, files), f"{self.name}:{to}/"])

    def fetch(self, folder: str, to: Path) -> None:
        """Copy a folder of the machine to this one.

        Raises:
            HostError: the copy fails.
        """
        self._copy(["-r", f"{self.name}:{folder}", str(to)])

    def edgepp(self, *arguments: str) -> str:
        """Command line of edgepp on the machine, with a home of its own."""
        words = " ".join(map(shlex.quote, arguments))
        environment = f"EDGEPP_HOME={self.folder}/home EDGEPP_NAME={shlex.quote(self.name)}"
        return f"cd {self.folder} && {environment} $EDGEPP_ENV exec {self.folder}/venv/bin/edgepp {words}"

    def _ssh(self, program: str = "ssh") -> list[str]:
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}", "-o", "ServerAliveInterval=15"]
        return [program, *(["-F", self.config] if self.config else []), *options]

    def _copy(self, arguments: list[str]) -> None:
        done = subprocess.run(
            [*self._ssh("scp"), "-q", *arguments], capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode:
            raise HostError(self.name, f"copy failed: {done.stderr.strip()}", "look at the space on both sides")

    def _unreached(self, error: str) -> HostError:
        lines = [line for line in error.strip().splitlines() if line and not line.startswith("Warning:")]
        last = lines[-1] if lines else "no message"
        if "Permission denied" in error:
            return HostError(
                self.name,
                "ssh: no key of yours is accepted",
                f"run `ssh-copy-id {self.name}`, then `ssh {self.name}` once",
            )
        if "verification failed" in error:
            return HostError(self.name, "ssh: the host key is not known", f"run `ssh {self.name}` once by hand")
        return HostError(self.name, f"ssh: {last}", "look whether it is on, and whether it allows Remote Login")
