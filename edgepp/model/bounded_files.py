"""Small files of a model folder, read with limits on size and nesting, since anybody may have written them."""

from __future__ import annotations

import fnmatch
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from edgepp import safe_files as files
from edgepp.errors import ModelError
from edgepp.printable import one_line
from edgepp.safe_files import NotRegular, TooLarge, read_whole, require_regular

MIB = 1 << 20
MAX_CONFIG_BYTES = 4 * MIB
"""Limit of config.json and generation_config.json: a thousand times the usual size."""
MAX_INDEX_BYTES = 32 * MIB
"""Limit of a weight index and of the record of a partial file; an index of 100,000 tensors takes 10 MB."""
MAX_TOKENIZER_BYTES = 128 * MIB
"""Limit of a tokenizer file; vocabularies of 260,000 tokens take 35 MB."""
MAX_TEMPLATE_BYTES = MIB
"""Limit of a chat template."""

TOKENIZER_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "*.jinja", "*.tiktoken", "*.model",
)  # fmt: skip
"""Name patterns of the files that libraries open when they read a tokenizer."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""First bytes of the pointer in place of a file that Git LFS has not fetched."""
_MAX_POINTER_BYTES = 1024
_MAX_DEPTH = 64
_PULL_HINT = "delete it and pull the model again"


def open_regular(path: Path) -> BinaryIO:
    """Open the regular file ``path`` for reading; a pipe or device is refused without waiting for it.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: ``path`` is not a regular file, or may not be read.
    """
    try:
        return files.open_regular(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> ModelError:
    """The error for a path that is not a regular file, or that the system does not let this process read."""
    if isinstance(error, NotRegular | TooLarge):
        return ModelError(f"{path} cannot be read: {error.strerror}", _PULL_HINT)
    return ModelError(
        f"{path} cannot be read: {error.strerror or error}", "check the file's owner, its permissions and the disk"
    )


def lfs_pointer(path: Path) -> ModelError:
    """The error for a file in place of which Git has written a pointer."""
    return ModelError(
        f"{path} was not fetched: it is a pointer of Git LFS", f"run `git lfs install && git lfs pull` in {path.parent}"
    )


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The contents of a regular file of at most ``max_bytes`` bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: ``path`` is not a regular file, has more than ``max_bytes`` bytes, or cannot be read.
    """
    try:
        with files.open_regular(path) as stream:
            return read_whole(stream, max_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def read_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES, *, strict: bool = False) -> dict[str, Any]:
    """The JSON object in a regular file of at most ``max_bytes`` bytes; ``strict`` refuses duplicate keys.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: the file is not regular, is larger, or its JSON is invalid, not an object, or nested too deeply.
    """
    try:
        return parse_object(read_bounded(path, max_bytes), strict=strict)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}", _PULL_HINT) from error
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}", _PULL_HINT) from error


def parse_object(data: bytes, *, strict: bool = False) -> dict[str, Any]:
    """The JSON object in ``data``; ``strict`` refuses duplicate keys.

    Raises:
        ValueError: ``data`` is not JSON, not a JSON object, mostly brackets, or nested too deeply.
    """
    if len(data) > MIB and data.count(b"[") + data.count(b"{") > len(data) // 16:
        raise ValueError("it is mostly brackets")  # Python objects of brackets take 30 times the bytes of the file
    try:
        value = json.loads(data, object_pairs_hook=_without_duplicates if strict else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it does not hold a JSON object")
    _check_values(value)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        duplicate = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"it gives {shown(duplicate)} twice")
    return value


def _check_values(value: dict[str, Any]) -> None:
    """Refuse values that no reader of such files can use: deep nesting, integers beyond 64 bits, NaN."""
    level: list[tuple[str, Any]] = list(value.items())
    for _ in range(_MAX_DEPTH):
        below: list[tuple[str, Any]] = []
        for key, item in level:
            if isinstance(item, dict):
                below += item.items()
            elif isinstance(item, list):
                below += ((key, entry) for entry in item)
            elif (isinstance(item, int) and not -(2**63) <= item < 2**63) or item != item:
                raise ValueError(f"{shown(key)} is not a usable number")
        if not below:
            return
        level = below
    raise ValueError("it is nested too deeply")


def shown(name: object, max_characters: int = 80) -> str:
    """A name or value from a file, made printable and shortened for an error message."""
    return one_line(str(name), max_characters)


def tokenizer_files(folder: Path) -> list[tuple[Path, int]]:
    """The files in ``folder`` that libraries open when they read a tokenizer, each with its size in bytes.

    All are regular and not too large: libraries open them by name, and would wait for a pipe or read a device without
    end.

    Raises:
        ModelError: a file is not regular, or too large; the sentence names the file.
    """
    templates = folder / "additional_chat_templates"
    return _checked_files(folder, TOKENIZER_FILES) + (_checked_files(templates, ("*",)) if templates.is_dir() else [])


def _checked_files(folder: Path, patterns: Iterable[str]) -> list[tuple[Path, int]]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from error
    checked = []
    for name in names:
        path = folder / name
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) or path.is_dir():
            continue
        try:
            status = path.stat()
            require_regular(path, status.st_mode)
        except FileNotFoundError:
            continue  # a dangling link; the reader of the file reports that it is absent
        except OSError as error:
            raise unreadable(path, error) from error
        max_bytes = max_file_bytes(name)
        if status.st_size > max_bytes:
            raise ModelError(f"{path} has more than {max_bytes // MIB} MiB, which such a file cannot need", _PULL_HINT)
        if status.st_size < _MAX_POINTER_BYTES and read_bounded(path, _MAX_POINTER_BYTES).startswith(LFS_POINTER):
            raise lfs_pointer(path)
        checked.append((path, status.st_size))
    return checked


def max_file_bytes(name: str) -> int:
    """Size limit in bytes of the small file called ``name``."""
    if name in ("config.json", "generation_config.json"):
        return MAX_CONFIG_BYTES
    if name.endswith(".index.json"):
        return MAX_INDEX_BYTES
    return MAX_TEMPLATE_BYTES if name.endswith(".jinja") else MAX_TOKENIZER_BYTES
