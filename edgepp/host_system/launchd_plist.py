"""The property list of a launchd agent or daemon."""

from __future__ import annotations

import plistlib
from pathlib import Path

from edgepp.host_system.service_definition import STOP_S, ServiceDefinition

LABEL = "edgepp"
_THROTTLE_S = 30


def plist_text(definition: ServiceDefinition, log: Path, *, user: str = "", home: Path | None = None) -> str:
    """The property list; its output goes to ``log``.

    A failure starts the service again, after 30 s at the earliest. A daemon runs as ``user``, whose folder ``home`` is
    told to it, as launchd does not.
    """
    environment = dict(definition.environment)
    if user and home is not None:
        environment |= {"HOME": str(home), "USER": user}
    properties = {
        "Label": LABEL,
        "ProgramArguments": list(definition.command),
        "EnvironmentVariables": environment,
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": _THROTTLE_S,
        "ExitTimeOut": STOP_S,
        "ProcessType": "Interactive",  # launchd slows down other types
        "Umask": 0o077,
        "StandardOutPath": str(log),
        "StandardErrorPath": str(log),
    }
    if user:
        properties["UserName"] = user
    return plistlib.dumps(properties).decode()
