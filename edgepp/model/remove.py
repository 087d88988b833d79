"""What a model takes on this disk, and its removal from edgepp's own cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from edgepp.errors import ModelError
from edgepp.model import smollm2
from edgepp.model.cache import cannot_write
from edgepp.model.catalogue.source import HubRepository, LocalFolder, resolve
from edgepp.model.hub.snapshot import root


def cached_folder(model: str) -> Path:
    """The folder of edgepp's cache that holds ``model``, all of its commits and what came of it in part.

    Raises:
        ModelError: it is not there, or it is a folder of the user's own.
    """
    source = resolve(model)
    if isinstance(source, LocalFolder):
        raise ModelError(f"{source.path} is a folder of yours, not of edgepp's cache", "delete it yourself")
    folder = root(source) if isinstance(source, HubRepository) else smollm2.folder()
    if not folder.is_dir():
        raise ModelError(f"{model} is not in edgepp's cache", "see `edgepp models list` for what is here")
    return folder


def bytes_on_disk(folder: Path) -> int:
    """Bytes that the files below ``folder`` take; of a file with gaps, what is written of it."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if not path.is_dir())


def remove(model: str) -> int:
    """Remove ``model`` from the cache and return the bytes that are free again; who runs it keeps what is loaded.

    Raises:
        ModelError: it is not there, is being fetched, or may not be removed.
    """
    folder = cached_folder(model)
    wheel = folder == smollm2.folder()
    lock = FileLock(folder.with_name(f"{folder.name}.lock") if wheel else folder / "lock")
    try:
        with lock.acquire(timeout=0):
            freed = bytes_on_disk(folder)
            gone = folder.with_name(f".{folder.name}.{os.getpid()}")
            folder.rename(gone)  # at one instant: no fetch finds a half of it
            shutil.rmtree(gone)
    except Timeout as error:
        raise ModelError(f"another edgepp fetches {model} now", "wait for it, or end it") from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    return freed
