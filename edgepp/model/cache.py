"""The folder for downloads, and the lock by which processes share it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from edgepp.errors import ModelError

Progress = Callable[[int, int, str], None]
"""Called with the bytes done, the bytes in all and a text for users; both numbers are 0 where they are unknown."""


def cache_dir() -> Path:
    """The folder for data that can be fetched again: ``EDGEPP_CACHE``, or the cache folder of the system."""
    chosen = os.environ.get("EDGEPP_CACHE")
    return Path(chosen).expanduser() if chosen else Path(user_cache_dir("edgepp"))


@contextmanager
def locked(path: Path, on_progress: Progress | None = None) -> Iterator[None]:
    """Hold the lock file ``path``; if another process holds it, report that to ``on_progress`` and wait.

    Raises:
        ModelError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if on_progress is not None:
                on_progress(0, 0, "waiting for another edgepp that fetches the same model")
            lock.acquire()
    except OSError as error:
        raise cannot_write(path.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def own_entry(folder: Path, name: str) -> Path:
    """The path in ``folder`` that belongs to ``name`` alone, which may not exist yet.

    A file system such as a Mac's takes upper and lower case for the same. If ``folder`` has an entry that differs from
    ``name`` only in case, the entry belongs to the other name, and the path of ``name`` ends in a digest.
    """
    path, apart = folder / name, folder / f"{name}~{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return apart if apart.exists() or (path.exists() and name not in _spellings(folder)) else path


def has_entry(folder: Path, name: str) -> bool:
    """Whether ``folder`` holds an entry that is spelled ``name``, also where upper and lower case are the same."""
    return (folder / name).exists() and name in _spellings(folder)


def _spellings(folder: Path) -> list[str]:
    """The names in ``folder`` as they were written; an empty list where the folder cannot be read."""
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def check_space(folder: Path, needed_bytes: int) -> None:
    """Check that the disk of ``folder`` has ``needed_bytes`` bytes free.

    Raises:
        ModelError: fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ModelError(
            f"{needed_bytes / 1e9:.1f} GB are to be stored in {folder}, which has {free / 1e9:.1f} GB free",
            "free some space, or set EDGEPP_CACHE to a folder on another disk",
        )


def cannot_write(folder: Path, error: OSError) -> ModelError:
    """The error for a cache folder that cannot be written: full, read-only or of another user."""
    reason = error.strerror or str(error)
    return ModelError(
        f"the model cannot be stored in {folder}: {reason}",
        "free some space, or set EDGEPP_CACHE to a folder on another disk",
    )
