"""Address of this machine's HTTP server, for other commands: a file that exists while the server runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepp.cluster.state_files import changing, config_dir, load, save
from edgepp.errors import EdgeppError


def announce(url: str) -> None:
    """Say that the server listens at ``url``. A failure is ignored: only `edgepp launch` reads the file."""
    with contextlib.suppress(EdgeppError), changing(_path()):
        save(_path(), {"url": url, "pid": os.getpid()}, _announced)


def withdraw() -> None:
    """Say that the server of this process no longer listens."""
    with contextlib.suppress(EdgeppError, OSError), changing(_path()):
        announced = load(_path(), _announced)
        if announced is not None and announced[1] == os.getpid():
            _path().unlink(missing_ok=True)


def running_server() -> str | None:
    """The base URL of this machine's HTTP server, which may have been killed since; None if no server was announced.

    Raises:
        EdgeppError: the file is damaged, or cannot be read.
    """
    announced = load(_path(), _announced)
    return announced[0] if announced is not None else None


def _path() -> Path:
    return config_dir() / "http.json"


def _announced(stored: Mapping[str, Any]) -> tuple[str, int] | None:
    url, pid = stored.get("url"), stored.get("pid")
    if type(url) is not str or type(pid) is not int or not url.startswith(("http://", "https://")):
        return None
    return url, pid
