"""Opening the files of a model folder, which anybody may have written.

Only regular files are opened, so a named pipe, a device or a socket is never waited for, and each file's size is
checked before it is read. Symbolic links are followed: a hub cache keeps its files behind them.
"""

from __future__ import annotations

import fnmatch
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from edgepp.errors import ModelError
from edgepp.printable import one_line

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
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BinaryIO:
    """Open the regular file ``path`` for reading; nothing else is opened or waited for.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is something else than a file, or may not be read.
    """
    try:
        _require_regular(path, path.stat().st_mode)
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        stream = os.fdopen(handle, "rb")
        try:
            _require_regular(path, os.fstat(handle).st_mode)  # the name may mean another thing by now
        except ModelError:
            stream.close()
            raise
        return stream
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no file")
        raise ModelError(f"{path} is {kind} where a file should be", "delete it, or name another folder")


def unreadable(path: Path, error: OSError) -> ModelError:
    """The sentence for a file that the system does not let this process read."""
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
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            data = stream.read(min(size, most) + 1)  # reading allocates what is asked for
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > most:
        raise ModelError(f"{path} has more than {most // MIB} MiB, which such a file cannot need", _PULL)
    return data


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
        except FileNotFoundError:
            continue  # a link to nothing: whoever needs it says that it is absent
        except OSError as error:
            raise unreadable(path, error) from error
        _require_regular(path, facts.st_mode)
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
