"""A partly fetched safetensors file: sparse, of full size, with a record of the ranges that were written.

While bytes are missing, ``model.safetensors.partial.json`` exists. The record is written before the file, and names a
range only after its bytes are on the disk, so that neither a crash nor a concurrent reader mistakes a hole for a
tensor.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from edgepp.errors import ModelError
from edgepp.model.bounded_files import MAX_INDEX_BYTES, read_object
from edgepp.model.weights.byte_ranges import Range, covers, difference, union
from edgepp.model.weights.safetensors_header import PARTIAL_SUFFIX, TensorPlace, header_bytes, parse_header, read_header
from edgepp.safe_files import write_atomically

_MAX_GAP_BYTES = 1 << 20  # gaps up to this size are fetched too: a request costs as much as this many bytes


class PartialFile:
    """A safetensors file that is being fetched; ``write`` may be called from several threads."""

    def __init__(self, path: Path, size_bytes: int, places: Iterable[TensorPlace], held: Iterable[Range]) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.places = tuple(places)
        self._held = union(held)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> PartialFile | None:
        """The file ``path`` as an earlier fetch left it; None where there is no such file.

        Raises:
            ModelError: the file or its record is damaged.
        """
        if not path.is_file():
            return None
        size_bytes = path.stat().st_size
        places = read_header(path, include_missing=True)
        record = _record(path)
        if not record.is_file():
            return cls(path, size_bytes, places, [(0, size_bytes)])
        held = read_object(record, MAX_INDEX_BYTES).get("ranges")
        if not isinstance(held, list) or not all(_is_range(one) for one in held):
            raise ModelError(f"{record} is damaged: it does not list ranges", f"delete {path.name} and its record")
        return cls(path, size_bytes, places, [(max(a, 0), min(b, size_bytes)) for a, b in held])

    @classmethod
    def create(cls, path: Path, size_bytes: int, head: bytes) -> PartialFile:
        """Create a file of ``size_bytes`` bytes; ``head`` are its first bytes, including the whole header.

        Raises:
            ModelError: the header is malformed or points outside the file.
        """
        places = parse_header(head[8 : 8 + header_bytes(head, path, size_bytes)], path, size_bytes)
        file = cls(path, size_bytes, places, [(0, len(head))])
        temporary = path.with_name(f".{path.name}.new")
        with temporary.open("wb") as stream:
            stream.write(head)
            stream.truncate(size_bytes)
            os.fsync(stream.fileno())
        file._write_record()
        temporary.replace(path)
        file.save()
        return file

    def missing_ranges(self, wanted: Callable[[str], bool]) -> list[Range]:
        """The ranges to fetch for all tensors whose names are ``wanted``; small gaps between ranges are included."""
        ranges = [(p.start, p.start + p.nbytes) for p in self.places if wanted(p.name)]
        return difference(union(ranges, _MAX_GAP_BYTES), self._held) if self.missing_tensors(wanted) else []

    def missing_tensors(self, wanted: Callable[[str], bool]) -> list[str]:
        """Names of the ``wanted`` tensors of which bytes are missing."""
        with self._lock:
            held = list(self._held)
        return [p.name for p in self.places if wanted(p.name) and not _holds(held, p)]

    def write(self, offset: int, data: bytes) -> None:
        """Write ``data`` at ``offset``; the next ``save`` records the range.

        Raises:
            ModelError: the data reach beyond the end of the file.
        """
        if offset + len(data) > self.size_bytes:
            raise ModelError(f"the hub sent more bytes of {self.path.name} than it has", "try again")
        if not data:
            return
        with self.path.open("r+b") as stream:
            stream.seek(offset)
            stream.write(data)
        with self._lock:
            self._held = union([*self._held, (offset, offset + len(data))])

    def save(self) -> None:
        """Flush written bytes to the disk, then record their ranges, or delete the record if no tensor is missing."""
        with self._lock:
            with self.path.open("r+b") as stream:
                os.fsync(stream.fileno())
            if all(_holds(self._held, place) for place in self.places):
                _record(self.path).unlink(missing_ok=True)
            elif _record(self.path).is_file():
                self._write_record()

    def _write_record(self) -> None:
        tensors = [place.name for place in self.places if _holds(self._held, place)]
        record = {"tensors": tensors, "ranges": self._held}
        write_atomically(_record(self.path), json.dumps(record).encode())


def _holds(held: Iterable[Range], place: TensorPlace) -> bool:
    return covers(held, (place.start, place.start + place.nbytes))


def _is_range(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(position) is int for position in value)


def _record(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL_SUFFIX)
