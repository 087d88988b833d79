"""The service under launchd of macOS: an agent of the user, or a daemon of the system that runs as the user.

An agent runs while its user is logged in at the screen, and macOS 15 and newer ask the user whether it may reach the
local network. A daemon runs from the start of the machine, and may reach it. Not run on a Mac yet.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Sequence
from pathlib import Path

from edgepp.errors import EdgeppError, UsageError
from edgepp.host_system.launchd_plist import LABEL, plist_text
from edgepp.host_system.service_definition import ServiceDefinition, ServiceStatus, ask
from edgepp.safe_files import write_atomically

_DAEMONS = Path("/Library/LaunchDaemons")
_NOT_FOUND = (3, 113)
"""Exit statuses of ``launchctl`` for a service that it does not know."""


class Launchd:
    """launchd, with an agent of the user or a daemon of the system."""

    def __init__(self, *, daemon: bool, daemons: Path = _DAEMONS) -> None:
        """``daemons`` is the folder of the system's daemons.

        Raises:
            UsageError: a daemon is meant for root, so there is no user whose key and models it could use.
        """
        self._daemon = daemon
        self.name = "launchd daemon" if daemon else "launchd agent"
        self._user = pwd.getpwuid(int(os.environ.get("SUDO_UID") or os.getuid())) if daemon else None
        home = Path(self._user.pw_dir) if self._user is not None else Path.home()
        self._home = home
        self._log = home / "Library" / "Logs" / "edgepp.log"
        self._domain = "system" if daemon else f"gui/{os.getuid()}"
        folder = daemons if daemon else home / "Library" / "LaunchAgents"
        self.path = folder / f"{LABEL}.plist"

    def text(self, definition: ServiceDefinition) -> str:
        """The property list."""
        return plist_text(definition, self._log, user=self._user.pw_name if self._user else "", home=self._home)

    def install(self, definition: ServiceDefinition) -> None:
        """Write the property list and start the service, in place of one installed before.

        Raises:
            UsageError: a daemon is installed without `sudo`, or for root.
            EdgeppError: launchd refuses, or the file cannot be written.
        """
        self._require_root()
        if self._user is not None and self._user.pw_uid == 0:
            raise UsageError(
                "a daemon needs the user whose key and models it uses", "as that user, run: sudo edgepp service install"
            )
        self._bootout()
        try:
            for folder in (self.path.parent, self._log.parent):
                folder.mkdir(parents=True, exist_ok=True)
            self._log.touch()
            if self._user is not None:
                os.chown(self._log, self._user.pw_uid, self._user.pw_gid)
            write_atomically(self.path, self.text(definition).encode())
        except OSError as error:
            raise EdgeppError(f"cannot write {error.filename or self.path}: {error.strerror}", "use --print") from error
        done = ask("launchctl", "bootstrap", self._domain, str(self.path))
        if done.returncode:
            hint = "try again" if self._daemon else "log in at this Mac's screen, or install a daemon: --daemon"
            raise EdgeppError(f"launchd refuses the service: {done.stderr.strip() or done.returncode}", hint)

    def status(self) -> ServiceStatus:
        """What launchd says of the service."""
        done = ask("launchctl", "print", self._target)
        loaded = done.returncode == 0
        fields = dict(re.findall(r"^\s+(state|pid|runs|last exit code) = (\S+)", done.stdout, re.MULTILINE))
        running = fields.get("state") == "running"
        code = fields.get("last exit code", "")
        return ServiceStatus(
            manager=self.name,
            file=str(self.path),
            installed=self.path.exists(),
            starts_by_itself=loaded,
            state="running" if running else "stopped" if not loaded or code in ("", "0", "(never") else "failed",
            pid=int(fields["pid"]) if fields.get("pid", "").isdigit() else None,
            restarts=max(0, int(fields["runs"]) - 1) if fields.get("runs", "").isdigit() else None,
            last_exit_status=int(code) if code.lstrip("-").isdigit() else None,
        )

    def log_command(self, lines: int, *, follow: bool) -> Sequence[str]:
        """The command that shows the end of the service's log."""
        return ["tail", "-n", str(lines), *(["-F"] if follow else []), str(self._log)]

    def remove(self) -> bool:
        """Stop the service, and remove its property list and its log; False where none was installed.

        Raises:
            UsageError: a daemon is removed without `sudo`.
            EdgeppError: launchd refuses, or a file cannot be removed.
        """
        if not self.path.exists():
            return False
        self._require_root()
        self._bootout()
        try:
            self.path.unlink(missing_ok=True)
            self._log.unlink(missing_ok=True)
        except OSError as error:
            raise EdgeppError(f"cannot remove {error.filename}: {error.strerror}", "remove it yourself") from error
        return True

    @property
    def _target(self) -> str:
        return f"{self._domain}/{LABEL}"

    def _require_root(self) -> None:
        if self._daemon and os.geteuid() != 0:
            raise UsageError("a daemon belongs to the system", "put `sudo` before the command")

    def _bootout(self) -> None:
        """Stop the service, if launchd has it.

        Raises:
            EdgeppError: launchd refuses.
        """
        done = ask("launchctl", "bootout", self._target)
        if done.returncode and done.returncode not in _NOT_FOUND:
            raise EdgeppError(
                f"launchd does not stop the service: {done.stderr.strip() or done.returncode}", "try again"
            )
