"""One node a configuration: whoever runs this machine's node holds a lock, so that a second one is told at once."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from filelock import Timeout

from edgepp.cluster.state_files import config_dir, load, locked, save
from edgepp.errors import EdgeppError, UsageError
from edgepp.printable import one_line

_MOMENT_S = 0.3  # another command may just be looking


@contextmanager
def hold_node_lock(command: str) -> Iterator[None]:
    """Be the one that runs this machine's node, by a command such as ``edgepp join``.

    Raises:
        UsageError: another process does so.
        EdgeppError: the folder of the configuration cannot be written.
    """
    path = config_dir() / "running.json"
    try:
        with locked(path, _MOMENT_S):
            save(path, {"command": command, "pid": os.getpid(), "host": platform.node()}, _holder)
            yield
    except Timeout as error:
        raise UsageError(
            f"this machine is a node already: {node_lock_holder() or 'another edgepp'} runs here",
            "end that one first, by Ctrl-C or `edgepp leave`; another node on one machine needs another EDGEPP_HOME",
        ) from error


def node_lock_holder() -> str:
    """What runs this machine's node now, for people; empty where nothing does."""
    path = config_dir() / "running.json"
    try:
        with locked(path, 0):
            return ""
    except Timeout:
        try:
            return load(path, _holder) or "another edgepp"
        except EdgeppError:
            return "another edgepp"


def wait_until_ended(wait_s: float) -> bool:
    """Whether nothing runs this machine's node any more, within so many seconds."""
    try:
        with locked(config_dir() / "running.json", wait_s):
            return True
    except Timeout:
        return False


def _holder(stored: Mapping[str, Any]) -> str | None:
    command, pid, host = stored.get("command"), stored.get("pid"), stored.get("host")
    if type(command) is not str or type(pid) is not int or type(host) is not str:
        return None
    elsewhere = "" if host == platform.node() else f" on {one_line(host, 60)}"
    return f"`{one_line(command, 60)}` (process {pid}{elsewhere})"
