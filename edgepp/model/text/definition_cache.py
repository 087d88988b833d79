"""Cache of tokenizer definitions, as the text process read them in a model folder, by a digest of the files read.

transformers takes a second or more of processor time to read a folder, and a model is opened many times.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgepp import __version__
from edgepp.model.bounded_files import max_file_bytes, read_bounded, tokenizer_files
from edgepp.model.cache import cache_dir
from edgepp.safe_files import open_regular, read_whole, write_atomically

log = logging.getLogger("edgepp.model")

_MAX_ENTRY_BYTES = 1 << 28
_MAX_ENTRIES = 16
"""Entries that are kept, the last ones written."""
_TEXTS = ("definition", "template", "tool_template", "bos")
"""Keys of the facts that are texts; all but the definition may be None."""


def cached_definition(
    folder: Path, files: Iterable[tuple[Path, int]], read: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The dict of ``read_definition`` for the tokenizer in ``folder``: from the cache, else from ``read()``.

    ``files`` are the ``tokenizer_files`` of the folder.

    Raises:
        ModelError: a file of the folder cannot be read, or is too large; or from ``read``.
    """
    digest = _digest(folder, files)
    entry = cache_dir() / "tokenizers" / f"{digest}.json"
    if (facts := _cached(entry)) is not None:
        return facts
    facts = read()
    if _digest(folder, tokenizer_files(folder)) == digest:  # else a file was changed while it was read
        _store(entry, facts)
    return facts


def _digest(folder: Path, files: Iterable[tuple[Path, int]]) -> str:
    """Digest of the ``files`` of a folder that a tokenizer is read from, and of the libraries that read them."""
    libraries = [__version__, *(version(name) for name in ("transformers", "tokenizers"))]
    digest = hashlib.sha256(json.dumps(libraries).encode())
    for path, _ in files:
        data = read_bounded(path, max_file_bytes(path.name))
        digest.update(f"\n{path.relative_to(folder)} {len(data)}\n".encode(errors="surrogateescape"))
        digest.update(data)
    return digest.hexdigest()


def _cached(entry: Path) -> dict[str, Any] | None:
    """The facts in the file ``entry``; None if there is none, or it is damaged."""
    try:
        with open_regular(entry) as stream:
            facts = json.loads(read_whole(stream, _MAX_ENTRY_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.info("a tokenizer in the cache cannot be read: %s", error)
        return None
    if not _is_complete(facts):
        log.info("a tokenizer in the cache is damaged: %s", entry.name)
        return None
    return dict(facts)


def _is_complete(facts: object) -> bool:
    if not isinstance(facts, dict) or not isinstance(facts.get("definition"), str):
        return False
    texts = all(name in facts and isinstance(facts[name], str | None) for name in _TEXTS)
    return texts and isinstance(facts.get("special"), dict) and type(facts.get("eos", "")) in (int, type(None))


def _store(entry: Path, facts: dict[str, Any]) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(entry, json.dumps(facts).encode())
        entries = sorted(entry.parent.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in entries[_MAX_ENTRIES:]:
            old.unlink(missing_ok=True)
    except OSError as error:  # such as a full disk; or another process removed an entry just now
        log.info("the tokenizer cannot be written to the cache: %s", error)
