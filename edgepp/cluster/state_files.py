"""Small JSON files that only their owner may read: replaced atomically, and checked to be readable before writing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from platformdirs import user_config_path

from edgepp.errors import EdgeppError, UsageError
from edgepp.safe_files import NotRegular, TooLarge, open_regular, read_whole, write_atomically

MAX_FILE_BYTES = 1 << 24
"""The largest file that is read or written."""
_WAIT_S = 10.0
_VERSION = 1

T = TypeVar("T")
Reader = Callable[[Mapping[str, Any]], T | None]
"""Turns a file's JSON object into a value; None where the object is malformed."""


def config_dir() -> Path:
    """The configuration folder: ``EDGEPP_HOME``, or the platform's folder for configuration.

    Raises:
        UsageError: the folder cannot be made.
    """
    home = os.environ.get("EDGEPP_HOME")
    try:
        path = Path(home).expanduser() if home else user_config_path("edgepp", appauthor=False)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the home of a user who does not exist
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot make {home or 'a folder for configuration'}: {reason}", "set EDGEPP_HOME to a folder of yours"
        ) from error
    return path


def read_private(path: Path) -> str | None:
    """The text of a file that only its owner may read; None where there is no file.

    Raises:
        EdgeppError: others may read the file, or it is too large, not text, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise EdgeppError(f"others may read {path}, which holds secrets", f"run: chmod 600 {path}")
            return read_whole(file, MAX_FILE_BYTES).decode()
    except FileNotFoundError:
        return None
    except (NotRegular, TooLarge) as error:
        raise EdgeppError(f"cannot read {path}: {error.strerror}", "move it away") from error
    except OSError as error:
        raise EdgeppError(
            f"cannot read {path}: {error.strerror}", "let this user read it, or set EDGEPP_HOME to another folder"
        ) from error
    except UnicodeDecodeError as error:
        raise damaged(path) from error


def load(path: Path, read: Reader[T]) -> T | None:
    """The value in a file; None where there is no file.

    Raises:
        EdgeppError: the file is damaged, others may read it, or it cannot be read.
    """
    text = read_private(path)
    if text is None:
        return None
    found = _parse(text, read)
    if found is None:
        raise damaged(path)
    return found


def save(path: Path, value: Mapping[str, Any], read: Reader[T]) -> None:
    """Replace a file atomically: readers see the old or the new content, also after a loss of power.

    Raises:
        EdgeppError: ``read`` rejects the value, or the file cannot be written; the old content is kept.
    """
    text = json.dumps({"version": _VERSION, **value}, indent=1) + "\n"
    if len(text) > MAX_FILE_BYTES or _parse(text, read) is None:
        hint = "there may be too many entries: drop some with `edgepp revoke`"
        raise EdgeppError(f"{path} stays as it is: the new content could not be read back", hint)
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from error


@contextmanager
def locked(path: Path, wait_s: float = _WAIT_S) -> Iterator[None]:
    """Hold the lock file of ``path``, the same name with the ending ``.lock``.

    Raises:
        Timeout: another process holds the lock for ``wait_s`` seconds.
        EdgeppError: the folder cannot be locked.
    """
    name = path.with_suffix(".lock")
    lock = FileLock(name, mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        raise _cannot_write(name, getattr(error, "strerror", None) or str(error)) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Hold the lock file of ``path`` while the file is changed.

    Raises:
        EdgeppError: another process keeps the lock, or the folder cannot be locked.
    """
    try:
        with locked(path):
            yield
    except Timeout as error:
        raise EdgeppError(
            f"another edgepp keeps {path} locked for more than {_WAIT_S:.0f} s", "end that process and try again"
        ) from error


def damaged(path: Path) -> EdgeppError:
    """The error for a file with malformed content."""
    return EdgeppError(f"{path} is damaged or of another version", "move it away, and invite or join again")


def _parse(text: str, read: Reader[T]) -> T | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if type(value) is not dict or value.get("version") != _VERSION:
        return None
    return read(value)


def _cannot_write(path: Path, reason: str) -> EdgeppError:
    return EdgeppError(
        f"cannot write {path}: {reason}", "free some space, move it away, or set EDGEPP_HOME to a folder of yours"
    )
