"""Rates that `edgepp bench` measured on this machine over time: one JSON object per line of a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from edgepp.errors import UsageError
from edgepp.safe_files import NotRegular, TooLarge, open_descriptor, open_regular, read_whole

FILE = "bench-history.jsonl"
MAX_BYTES = 16 << 20
"""Largest history that is read or added to: many thousand runs."""


class Rate(msgspec.Struct, frozen=True):
    """A median of a run's rounds, and their smallest and largest value."""

    median: float
    low: float
    high: float


class HistoryEntry(msgspec.Struct, frozen=True):
    """One run of `edgepp bench`."""

    time: str
    """Begin, as ``YYYY-MM-DD HH:MM +ZZZZ``."""
    version: str
    commit: str | None
    """Commit of the clone that ran; None where edgepp did not run from a clone."""
    machine: str
    """Processor, number of CPUs, and system."""
    model: str
    shape: str
    """Kind of pipeline and what its stages run on, such as ``local, 2 stages: 0-14 onnx, 15-29 onnx``."""
    busy: bool
    """Whether other programs kept the machine busy."""
    rates: Mapping[str, Rate]
    """By name: ``decode_tokens_per_s`` and others."""

    @property
    def label(self) -> str:
        """Name of the measured state: the version, and the commit if there is one."""
        return f"{self.version} {self.commit}" if self.commit else self.version


def append_entry(folder: Path, entry: HistoryEntry) -> None:
    """Add ``entry`` to the history in ``folder``; the file is readable by its owner only.

    Raises:
        UsageError: the history is full or cannot be written.
    """
    path = folder / FILE
    line = msgspec.json.encode(entry) + b"\n"
    try:
        descriptor = open_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "ab") as file:
            if file.tell() + len(line) > MAX_BYTES:
                raise UsageError(f"{path} is full", "move it away")
            file.write(line)  # one write of less than a page: lines of two runs do not mix
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "see `edgepp doctor`") from error


def read_entries(folder: Path) -> list[HistoryEntry]:
    """All entries in ``folder``, the oldest first; none without a file.

    Raises:
        UsageError: the file cannot be read, or a line is not an entry.
    """
    path = folder / FILE
    try:
        with open_regular(path) as file:
            lines = read_whole(file, MAX_BYTES).splitlines()
    except FileNotFoundError:
        return []
    except (OSError, NotRegular, TooLarge) as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "move it away") from error
    decoder, entries = msgspec.json.Decoder(HistoryEntry), []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} has no entry in line {number}: {error}", "remove that line") from error
    return entries


def series(entries: Iterable[HistoryEntry]) -> dict[tuple[str, str, str], list[HistoryEntry]]:
    """Comparable entries in their order: those of one model, shape and machine."""

    def key(entry: HistoryEntry) -> tuple[str, str, str]:
        return entry.model, entry.shape, entry.machine

    return {alike: list(found) for alike, found in groupby(sorted(entries, key=key), key)}


def as_json(entries: Iterable[HistoryEntry]) -> dict[str, Any]:
    """The history as one JSON object: ``entries``, the oldest first."""
    return {"schema": 1, "entries": msgspec.to_builtins(list(entries))}
