"""Codecs of hidden states: array to tensor frames and back.

``none`` sends the bytes of the array. ``lz4`` and ``zstd`` are lossless; they first group the bytes of equal
significance, without which floating point does not compress. ``int8`` is lossy and half the size of bfloat16: one
float32 scale per row, and eight bits per value. The length of a frame is checked against shape and dtype before the
frame is used.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import lz4.block
import ml_dtypes
import numpy as np
import numpy.typing as npt
import zstandard

from edgepp.errors import LocalProtocolError, RemoteProtocolError
from edgepp.wire.field_types import Codec, Dtype

Array: TypeAlias = npt.NDArray[Any]
Frame: TypeAlias = bytes | memoryview

DTYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class _CodecFunctions:
    """One codec: its two directions, and the number of tensor frames of an array."""

    encode: Callable[[Array], list[Frame]]
    decode: Callable[[Sequence[Frame], tuple[int, int], np.dtype[Any]], Array]
    num_frames: int


_NAMES = {dtype: cast("Dtype", name) for name, dtype in DTYPES.items()}


def dtype_name(dtype: npt.DTypeLike) -> Dtype:
    """Name of a dtype in headers.

    Raises:
        LocalProtocolError: The protocol has no such dtype.
    """
    name = _NAMES.get(np.dtype(dtype))
    if name is None:
        raise LocalProtocolError(f"the protocol does not carry the dtype {dtype}")
    return name


def checksum(frames: Sequence[Frame]) -> int:
    """CRC-32 of tensor frames: the checks of TCP and of network cards miss one damaged frame in some millions."""
    crc = 0
    for frame in frames:
        crc = zlib.crc32(frame, crc)
    return crc


def check(frames: Sequence[Frame], expected: int) -> None:
    """Check received tensor frames against the checksum of their header.

    Raises:
        RemoteProtocolError: They were damaged on the way.
    """
    if checksum(frames) != expected:
        raise RemoteProtocolError("hidden states that were damaged on the way")


def encode(array: Array, codec: Codec) -> list[Frame]:
    """Tensor frames of ``array`` (T, D), of a dtype in ``DTYPES``; no frame for T = 0.

    Raises:
        LocalProtocolError: The array has another shape or dtype.
    """
    dtype_name(array.dtype)
    if array.ndim != 2:
        raise LocalProtocolError(f"the protocol carries arrays (T, D), not {array.shape}")
    if array.shape[0] == 0:
        return []
    return _CODECS[codec].encode(np.ascontiguousarray(array))


def decode(frames: Sequence[Frame], rows: int, width: int, dtype: Dtype, codec: Codec) -> Array:
    """Hidden states (rows, width) of tensor frames; for codec ``none`` a read-only view of the frame.

    Raises:
        RemoteProtocolError: Number or size of the frames do not fit shape, dtype and codec.
    """
    expected = _CODECS[codec].num_frames if rows else 0
    if len(frames) != expected:
        raise RemoteProtocolError(f"{len(frames)} tensor frames where codec {codec} has {expected}")
    if rows == 0:
        return np.empty((0, width), DTYPES[dtype])
    return _CODECS[codec].decode(frames, (rows, width), DTYPES[dtype])


def _expect(frame: Frame, nbytes: int) -> Frame:
    if len(frame) != nbytes:
        raise RemoteProtocolError(f"a tensor frame of {len(frame)} bytes where shape and dtype say {nbytes}")
    return frame


def _nbytes(shape: tuple[int, int], dtype: np.dtype[Any]) -> int:
    return shape[0] * shape[1] * dtype.itemsize


def _encode_none(array: Array) -> list[Frame]:
    return [array.view(np.uint8).reshape(-1).data]


def _decode_none(frames: Sequence[Frame], shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    return np.frombuffer(_expect(frames[0], _nbytes(shape, dtype)), dtype).reshape(shape)


def _shuffle(array: Array) -> bytes:
    return array.view(np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes()


def _unshuffle(raw: bytes, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(shape)


def _encode_lz4(array: Array) -> list[Frame]:
    return [lz4.block.compress(_shuffle(array), store_size=False)]


def _decode_lz4(frames: Sequence[Frame], shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    nbytes = _nbytes(shape, dtype)
    try:
        raw = lz4.block.decompress(frames[0], uncompressed_size=nbytes)
    except lz4.block.LZ4BlockError as error:
        raise RemoteProtocolError(f"a tensor frame is not lz4: {error}") from error
    return _unshuffle(bytes(_expect(raw, nbytes)), shape, dtype)


def _encode_zstd(array: Array) -> list[Frame]:
    return [zstandard.compress(_shuffle(array), 1)]


def _decode_zstd(frames: Sequence[Frame], shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    nbytes = _nbytes(shape, dtype)
    try:
        # zstandard allocates the size that the frame claims, so the claim is checked first.
        claimed = zstandard.frame_content_size(frames[0])
        if claimed != nbytes:
            raise RemoteProtocolError(f"a zstd frame claims {claimed} bytes where shape and dtype say {nbytes}")
        raw = zstandard.decompress(frames[0], max_output_size=nbytes)
    except zstandard.ZstdError as error:
        raise RemoteProtocolError(f"a tensor frame is not zstd: {error}") from error
    return _unshuffle(bytes(_expect(raw, nbytes)), shape, dtype)


def _encode_int8(array: Array) -> list[Frame]:
    wide = array.astype(np.float32, copy=False)
    scale = np.abs(wide).max(axis=1, keepdims=True) / 127
    codes = np.rint(wide / np.where(scale > 0, scale, 1)).astype(np.int8)
    return [memoryview(scale.astype("<f4").tobytes()), memoryview(codes.tobytes())]


def _decode_int8(frames: Sequence[Frame], shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    scale = np.frombuffer(_expect(frames[0], shape[0] * 4), "<f4").reshape(-1, 1)
    codes = np.frombuffer(_expect(frames[1], shape[0] * shape[1]), np.int8).reshape(shape)
    wide: Array = codes * scale
    return wide.astype(dtype, copy=False)


_CODECS: Mapping[Codec, _CodecFunctions] = {
    "none": _CodecFunctions(_encode_none, _decode_none, 1),
    "lz4": _CodecFunctions(_encode_lz4, _decode_lz4, 1),
    "zstd": _CodecFunctions(_encode_zstd, _decode_zstd, 1),
    "int8": _CodecFunctions(_encode_int8, _decode_int8, 2),
}
NAMES: tuple[Codec, ...] = tuple(_CODECS)
"""All codecs."""
