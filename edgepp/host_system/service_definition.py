"""What a service runs, and what the service managers of Linux and macOS have in common.

``systemd`` and ``launchd`` install the definition; ``systemd_unit`` and ``launchd_plist`` write its file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from edgepp.errors import EdgeppError, UsageError

Role = Literal["serve", "join"]
KEPT_VARIABLES = ("EDGEPP_HOME", "EDGEPP_NAME", "EDGEPP_CACHE", "EDGEPP_TOKEN_FILE", "HF_ENDPOINT", "HF_HOME")
"""Environment variables that a service takes over; none of them is a secret, as others may read a service's file."""
STOP_S = 45
"""How long a service may take to stop: moving layers to other nodes takes 20 s at most."""
_ASK_S = 60.0


@dataclass(frozen=True)
class ServiceDefinition:
    """The command that a service runs."""

    role: Role
    program: tuple[str, ...]
    """Absolute path of the `edgepp` command, or of Python with arguments that run it."""
    options: tuple[str, ...]
    environment: Mapping[str, str]

    def __post_init__(self) -> None:
        for text in (*self.command, *self.environment.values()):
            if any(character < " " or character == "\x7f" for character in text):
                raise UsageError(f"a control character in {text!a:.60} cannot be written into a service's file")

    @property
    def command(self) -> tuple[str, ...]:
        """The whole command line."""
        return (*self.program, self.role, *self.options)


@dataclass(frozen=True)
class ServiceStatus:
    """What the service manager says of the service."""

    manager: str
    file: str
    installed: bool
    starts_by_itself: bool
    """Whether the service starts with the login or the machine."""
    state: Literal["running", "starting", "stopping", "stopped", "failed", "unknown"]
    pid: int | None = None
    restarts: int | None = None
    last_exit_status: int | None = None
    lingers: bool | None = None
    """Whether the service runs while its user is not logged in; None where the manager has no such choice."""


class ServiceManager(Protocol):
    """systemd of a user, or launchd."""

    name: str
    path: Path
    """Where the service's file is."""

    def text(self, definition: ServiceDefinition) -> str:
        """The service's file."""

    def install(self, definition: ServiceDefinition) -> None:
        """Write the file and start the service, in place of one that was installed before.

        Raises:
            EdgeppError: the manager refuses, or the file cannot be written.
        """

    def status(self) -> ServiceStatus:
        """What the manager says of the service."""

    def log_command(self, lines: int, *, follow: bool) -> Sequence[str]:
        """The command that shows the last ``lines`` lines of the service's output, and with ``follow`` later ones."""

    def remove(self) -> bool:
        """Stop the service and remove its file; False where none was installed.

        Raises:
            EdgeppError: the manager refuses.
        """


def kept_environment() -> dict[str, str]:
    """The variables of this process that a service takes over; folders become absolute."""
    found = {name: os.environ[name] for name in KEPT_VARIABLES if os.environ.get(name)}
    for name in ("EDGEPP_HOME", "EDGEPP_CACHE", "EDGEPP_TOKEN_FILE", "HF_HOME"):
        if name in found:
            found[name] = str(Path(found[name]).expanduser().absolute())
    return found


def edgepp_program() -> tuple[str, ...]:
    """Absolute path of the `edgepp` command of this environment, or Python with arguments that run edgepp.

    With ``-P`` Python imports nothing from the current folder, which is the home of the user.
    """
    script = Path(sysconfig.get_path("scripts")) / "edgepp"
    if script.is_file() and os.access(script, os.X_OK):
        return (str(script.absolute()),)
    return (str(Path(sys.executable).absolute()), "-P", "-m", "edgepp")


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the service manager, and return how it ended.

    Raises:
        EdgeppError: there is no such command, or it does not answer.
    """
    found = shutil.which(command[0])
    if found is None:
        raise EdgeppError(f"there is no {command[0]} here", "start edgepp from the init system of this machine")
    try:
        return subprocess.run(  # noqa: S603 - a command of the system
            [found, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ASK_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EdgeppError(f"`{' '.join(command)}` does not answer", "try again") from error


def facts(status: ServiceStatus) -> dict[str, Any]:
    """``status`` as JSON values."""
    return dict(vars(status))
