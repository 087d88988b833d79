"""The header of a safetensors file, which gives dtype, shape and place of each tensor.

Headers come from the network, so each number is checked against file, shape and dtype before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgepp.errors import ModelError
from edgepp.model.bounded_files import (
    LFS_POINTER,
    MAX_INDEX_BYTES,
    lfs_pointer,
    open_regular,
    parse_object,
    read_object,
    shown,
    unreadable,
)

DTYPES: Mapping[str, npt.DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""Numpy dtype of each safetensors dtype that a checkpoint may use."""
_UNSUPPORTED_DTYPES = frozenset({"F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0", "C64"})
"""Safetensors dtypes that no backend supports."""

PARTIAL_SUFFIX = ".partial.json"
"""Suffix of the record of a partly fetched file: ``model.safetensors.partial.json`` lists its complete tensors."""

MAX_HEADER_BYTES = 32 << 20
"""Limit of a header; the format allows 100 MB, and a header of 100,000 tensors takes 12 MB."""

_MAX_DIMENSIONS = 8
_PULL_HINT = "delete it and pull the model again"


@dataclass(frozen=True)
class TensorPlace:
    """Place of a tensor: ``nbytes`` bytes from ``start`` in ``file``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int


def wrong_dtype(name: str, folder: Path, dtype: str) -> ModelError:
    """The error for the tensor ``name`` of ``folder``, whose dtype does not suit the use of the tensor."""
    return ModelError(
        f"{name} of {folder.name} is of the type {dtype}, which its place in the model cannot be",
        "take the model from where it was published, or convert it with `mlx_lm.convert`",
    )


def header_bytes(head: bytes | bytearray, file: Path, file_bytes: int) -> int:
    """Length in bytes of the header of a file of ``file_bytes`` bytes; ``head`` are its first eight bytes or more.

    Raises:
        ModelError: the file is not a safetensors file.
    """
    length = int.from_bytes(head[:8], "little")
    if LFS_POINTER.startswith(head[:8]) and len(head) >= 8:
        raise lfs_pointer(file)
    if len(head) < 8 or not 0 < length <= min(MAX_HEADER_BYTES, file_bytes - 8):
        raise ModelError(f"{file.name} is not a safetensors file", _PULL_HINT)
    return length


def parse_header(raw: bytes, file: Path, file_bytes: int) -> list[TensorPlace]:
    """Parse a safetensors header; ``raw`` is the JSON after the eight bytes of its length.

    Raises:
        ModelError: an entry is malformed, overlaps another entry or is outside the file.
    """
    try:
        entries = parse_object(raw, strict=True)
        base = 8 + len(raw)
        places = [
            _place(name, entry, file, base, file_bytes) for name, entry in entries.items() if name != "__metadata__"
        ]
        _check_apart(places)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ModelError(f"{file.name} is damaged: {reason}", _PULL_HINT) from error
    return places


def _place(name: str, entry: Any, file: Path, base: int, file_bytes: int) -> TensorPlace:
    if not name.isprintable():
        raise ValueError("a tensor has an unprintable name")
    label = shown(name)
    if isinstance(entry, dict) and entry["dtype"] in _UNSUPPORTED_DTYPES:
        raise ModelError(
            f"{label} of {file.name} is of the type {entry['dtype']}, which edgepp does not read",
            "use a copy of the model as mlx-lm quantises it, for example from mlx-community",
        )
    if not isinstance(entry, dict) or entry["dtype"] not in DTYPES:
        raise ValueError(f"{label} has an unknown dtype")
    shape, offsets = _sizes(label, entry["shape"]), _sizes(label, entry["data_offsets"])
    if len(offsets) != 2 or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{label} has {len(shape)} dimensions and {len(offsets)} offsets")
    begin, end = offsets
    nbytes = np.dtype(DTYPES[entry["dtype"]]).itemsize
    for size in shape:
        nbytes *= size
    if nbytes != end - begin:
        raise ValueError(f"{label}'s bytes do not match its shape")
    if base + end > file_bytes:
        raise ValueError(f"{label} is outside the file")
    return TensorPlace(name, entry["dtype"], shape, file, base + begin, nbytes)


def _sizes(label: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int for size in value):
        raise ValueError(f"{label} has sizes that are not whole numbers")
    if any(size < 0 for size in value):
        raise ValueError(f"{label} has a negative size")
    return tuple(value)


def _check_apart(places: Sequence[TensorPlace]) -> None:
    end = 0
    for place in sorted(places, key=lambda place: (place.start, place.nbytes)):
        if place.start < end:
            raise ValueError(f"{shown(place.name)} overlaps another tensor")
        end = max(end, place.start + place.nbytes)


def read_header(file: Path, *, include_missing: bool = False) -> list[TensorPlace]:
    """Places of the tensors in ``file``, with ``include_missing`` also of tensors that are not fetched yet.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: the file is not a safetensors file, or is damaged.
    """
    try:
        with open_regular(file) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            length = header_bytes(stream.read(8), file, size)
            places = parse_header(stream.read(length), file, size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(file, error) from error
    held = None if include_missing else held_names(file)
    return places if held is None else [place for place in places if place.name in held]


def held_names(file: Path) -> set[str] | None:
    """Names of the complete tensors of a partly fetched file; None for a complete file.

    Raises:
        ModelError: the record of the partly fetched file is damaged.
    """
    record = file.with_name(file.name + PARTIAL_SUFFIX)
    try:
        names = read_object(record, MAX_INDEX_BYTES).get("tensors", [])
    except FileNotFoundError:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{record} is damaged: it does not list tensors", f"delete {file.name} and its record")
    return set(names)
