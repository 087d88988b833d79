"""Disk usage of a cached model, and its removal from edgepp's cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from edgepp.errors import ModelError
from edgepp.model import offline_model
from edgepp.model.cache import cannot_write
from edgepp.model.catalogue.source import HubRepository, LocalFolder, resolve
from edgepp.model.hub.snapshot import repository_folder


def cached_folder(model: str) -> Path:
    """The folder of edgepp's cache that holds all commits of ``model``, complete and partial.

    Raises:
        ModelError: the model is not in the cache, or ``model`` is a folder of the user.
    """
    source = resolve(model)
    if isinstance(source, LocalFolder):
        raise ModelError(f"{source.path} is a folder of yours, not of edgepp's cache", "delete it yourself")
    folder = repository_folder(source) if isinstance(source, HubRepository) else offline_model.folder()
    if not folder.is_dir():
        raise ModelError(f"{model} is not in edgepp's cache", "see `edgepp models list` for what is here")
    return folder


def bytes_on_disk(folder: Path) -> int:
    """Bytes on disk of the files below ``folder``; of a sparse file, the written blocks."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if not path.is_dir())


def remove(model: str) -> int:
    """Remove ``model`` from the cache and return the number of bytes freed; processes that run it are not affected.

    Raises:
        ModelError: the model is not in the cache, is being fetched, or may not be removed.
    """
    folder = cached_folder(model)
    wheel = folder == offline_model.folder()
    lock = FileLock(folder.with_name(f"{folder.name}.lock") if wheel else folder / "lock")
    try:
        with lock.acquire(timeout=0):
            freed = bytes_on_disk(folder)
            removed = folder.with_name(f".{folder.name}.{os.getpid()}")
            folder.rename(removed)  # atomic, so that no fetch finds a part of the folder
            shutil.rmtree(removed)
    except Timeout as error:
        raise ModelError(
            f"another edgepp process is fetching {model}", "wait until it has finished, or end it"
        ) from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    return freed
