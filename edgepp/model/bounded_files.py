"""Reading the small files of a model folder, which anybody may have written: how large and how deep each may be."""

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
CONFIG_BYTES = 4 * MIB
"""Largest config.json or generation_config.json: a thousand times an ordinary one."""
INDEX_BYTES = 32 * MIB
"""Largest weight index or partial record; an index of 100,000 tensors takes 10 MB."""
TOKENIZER_BYTES = 128 * MIB
"""Largest tokenizer file; vocabularies of 260,000 tokens take 35 MB."""
TEMPLATE_BYTES = MIB
"""Largest chat template."""

TOKENIZER_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "*.jinja", "*.tiktoken", "*.model",
)  # fmt: skip
"""Names of files that libraries open by themselves when they read a tokenizer."""

_DEPTH = 64
_PULL = "delete it and pull the model again"


def open_regular(path: Path) -> BinaryIO:
    """Open the regular file ``path`` for reading; nothing else is opened or waited for.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is something else than a file, or may not be read.
    """
    try:
        return files.open_regular(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> ModelError:
    """The sentence for a file that is none, or that the system does not let this process read."""
    if isinstance(error, NotRegular | TooLarge):
        return ModelError(f"{path} cannot be read: {error.strerror}", "delete it and pull the model again")
    return ModelError(
        f"{path} cannot be read: {error.strerror or error}", "check the file's owner, its permissions and the disk"
    )


def read_bounded(path: Path, most: int) -> bytes:
    """The whole of a regular file of at most ``most`` bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is no regular file, is larger, or cannot be read.
    """
    try:
        with files.open_regular(path) as stream:
            return read_whole(stream, most)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def read_object(path: Path, most: int = CONFIG_BYTES, *, strict: bool = False) -> dict[str, Any]:
    """The JSON object in a regular file of at most ``most`` bytes; ``strict`` refuses a key that comes twice.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is no such file, or its JSON is invalid, no object, or nested deeper than such files are.
    """
    try:
        return parse_object(read_bounded(path, most), strict=strict)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}", _PULL) from error
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}", _PULL) from error


def parse_object(data: bytes, *, strict: bool = False) -> dict[str, Any]:
    """The JSON object in ``data``; ``strict`` refuses a key that comes twice.

    Raises:
        ValueError: it is no JSON, holds no JSON object, or is mostly brackets.
    """
    if len(data) > MIB and data.count(b"[") + data.count(b"{") > len(data) // 16:
        raise ValueError("it is mostly brackets")  # whose objects would take 30 times the file's bytes
    try:
        value = json.loads(data, object_pairs_hook=_without_doubles if strict else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it does not hold a JSON object")
    _check_values(value)
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"it gives {shown(twice)} twice")
    return value


def _check_values(value: dict[str, Any]) -> None:
    """Refuse what no reader of such files can use: deep nesting, integers beyond 64 bits, NaN."""
    level: list[tuple[str, Any]] = list(value.items())
    for _ in range(_DEPTH):
        below: list[tuple[str, Any]] = []
        for key, item in level:
            if isinstance(item, dict):
                below += item.items()
            elif isinstance(item, list):
                below += ((key, entry) for entry in item)
            elif (isinstance(item, int) and not -(2**63) <= item < 2**63) or item != item:
                raise ValueError(f"{shown(key)} is no usable number")
        if not below:
            return
        level = below
    raise ValueError("it is nested too deeply")


def shown(name: object, longest: int = 80) -> str:
    """A name or a value from a file, short and printable enough for a sentence."""
    return one_line(str(name), longest)


def check_readable(folder: Path, patterns: Iterable[str] = TOKENIZER_FILES) -> int:
    """Hold the small files of a model folder to regular files of a size that they can need; their bytes together.

    Libraries open such files by name and would wait for a pipe, or read a device without end.

    Raises:
        ModelError: one of them is something else, or too large; the sentence names it.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from error
    total = 0
    for name in names:
        path = folder / name
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) or path.is_dir():
            continue
        try:
            facts = path.stat()
            require_regular(path, facts.st_mode)
        except FileNotFoundError:
            continue  # a link to nothing: whoever needs it says that it is absent
        except OSError as error:
            raise unreadable(path, error) from error
        most = most_bytes(name)
        if facts.st_size > most:
            raise ModelError(f"{path} has more than {most // MIB} MiB, which such a file cannot need", _PULL)
        total += facts.st_size
    return total


def most_bytes(name: str) -> int:
    """Largest size of the small file called ``name``."""
    if name in ("config.json", "generation_config.json"):
        return CONFIG_BYTES
    if name.endswith(".index.json"):
        return INDEX_BYTES
    return TEMPLATE_BYTES if name.endswith(".jinja") else TOKENIZER_BYTES
