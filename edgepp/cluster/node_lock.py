"""One node per configuration: the process that runs the node holds a lock, so that a second one fails at once."""

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

_LOCK_WAIT_S = 0.3  # another command may hold the lock for a moment to look at it


@contextmanager
def hold_node_lock(command: str) -> Iterator[None]:
    """Hold the lock of this machine's node, for a command such as ``edgepp join``.

    Raises:
        UsageError: another process holds the lock.
        EdgeppError: the configuration folder cannot be written.
    """
    path = config_dir() / "running.json"
    try:
        with locked(path, _LOCK_WAIT_S):
            save(path, {"command": command, "pid": os.getpid(), "host": platform.node()}, _holder)
            yield
    except Timeout as error:
        raise UsageError(
            f"this machine is a node already: {node_lock_holder() or 'another edgepp'} runs",
            "end that process first, with Ctrl-C or `edgepp leave`; a second node needs an EDGEPP_HOME of its own",
        ) from error


def node_lock_holder() -> str:
    """The command and process that run this machine's node, for people; empty where none does."""
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
    """Wait up to ``wait_s`` seconds for the end of this machine's node; whether it has ended."""
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
