"""The service under systemd, as a service of the user: no root is needed."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from edgepp.errors import EdgeppError
from edgepp.host_system.service_definition import ServiceDefinition, ServiceStatus, ask
from edgepp.host_system.systemd_unit import unit_text
from edgepp.safe_files import write_atomically

UNIT = "edgepp.service"
_LINGER = Path("/var/lib/systemd/linger")
_BOOTED = Path("/run/systemd/system")
_STATES: Mapping[str, Literal["running", "starting", "stopping", "stopped", "failed"]] = {
    "active": "running",
    "activating": "starting",
    "reloading": "running",
    "deactivating": "stopping",
    "inactive": "stopped",
    "failed": "failed",
}


def is_booted() -> bool:
    """Whether systemd is the init system of this machine."""
    return _BOOTED.is_dir()


class Systemd:
    """The user's manager of systemd."""

    name = "systemd"

    def __init__(self) -> None:
        config = os.environ.get("XDG_CONFIG_HOME")
        self.path = (Path(config) if config else Path.home() / ".config") / "systemd" / "user" / UNIT

    def text(self, definition: ServiceDefinition) -> str:
        """The unit file."""
        return unit_text(definition)

    def install(self, definition: ServiceDefinition) -> None:
        """Write the unit file, and start the service now and with each login, in place of one installed before.

        Raises:
            EdgeppError: the user's manager refuses or does not run, or the file cannot be written.
        """
        self._order("is-system-running", may_fail=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, self.text(definition).encode())
        except OSError as error:
            raise EdgeppError(
                f"cannot write {self.path}: {error.strerror}", "let this user write there, or use --print"
            ) from error
        self._order("daemon-reload")
        self._order("enable", UNIT)
        self._order("restart", UNIT)

    def status(self) -> ServiceStatus:
        """What the user's manager says of the service.

        Raises:
            EdgeppError: the user's manager does not run.
        """
        asked = "LoadState,ActiveState,UnitFileState,MainPID,NRestarts,ExecMainStatus"
        said = self._order("show", UNIT, f"--property={asked}")
        found = dict(line.partition("=")[::2] for line in said.splitlines())
        pid = int(found.get("MainPID") or 0)
        return ServiceStatus(
            manager=self.name,
            file=str(self.path),
            installed=self.path.exists(),
            starts_by_itself=found.get("UnitFileState") == "enabled",
            state=_STATES.get(found.get("ActiveState", ""), "unknown"),
            pid=pid or None,
            restarts=int(found.get("NRestarts") or 0),
            last_exit_status=None if pid else int(found.get("ExecMainStatus") or 0),
            lingers=self.lingers,
        )

    def log_command(self, lines: int, *, follow: bool) -> Sequence[str]:
        """The journal's command for the service's output."""
        shown = ["journalctl", "--user", "--unit", UNIT, "--no-pager", "--lines", str(lines)]
        return [*shown, "--follow"] if follow else shown

    def remove(self) -> bool:
        """Stop the service, and remove its file and its links; False where none was installed.

        Raises:
            EdgeppError: the user's manager refuses or does not run, or the file cannot be removed.
        """
        if not self.path.exists():
            return False
        self._order("disable", "--now", UNIT)
        try:
            self.path.unlink(missing_ok=True)
            for folder in self.path.parents[:2]:
                with suppress(OSError):  # other units are there
                    folder.rmdir()
        except OSError as error:
            raise EdgeppError(f"cannot remove {self.path}: {error.strerror}", "remove it yourself") from error
        self._order("daemon-reload")
        self._order("reset-failed", UNIT, may_fail=True)  # refused where it had not failed
        return True

    @property
    def lingers(self) -> bool:
        """Whether the user's services run while the user is not logged in."""
        return (_LINGER / getpass.getuser()).exists()

    def linger(self) -> None:
        """Let the user's services run from the start of the machine, and after a logout.

        Raises:
            EdgeppError: the login manager refuses.
        """
        done = ask("loginctl", "enable-linger", getpass.getuser())
        if done.returncode:
            said = done.stderr.strip() or f"status {done.returncode}"
            raise EdgeppError(
                f"lingering cannot be turned on: {said}", f"run: sudo loginctl enable-linger {getpass.getuser()}"
            )

    def _order(self, *arguments: str, may_fail: bool = False) -> str:
        """The output of ``systemctl --user``."""
        done = ask("systemctl", "--user", *arguments)
        said = done.stderr.strip()
        if done.returncode and ("connect to bus" in said or "user scope bus" in said):
            raise EdgeppError(
                f"the service manager of {getpass.getuser()} does not run: {said}",
                "log in as this user, not by `su` or `sudo`; on a machine without logins first run as root:"
                f" loginctl enable-linger {getpass.getuser()}",
            )
        if done.returncode and not may_fail:
            raise EdgeppError(
                f"systemctl {arguments[0]} failed: {said or done.returncode}",
                "see `edgepp service logs`, and try again",
            )
        return done.stdout
