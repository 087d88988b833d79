from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import LocalProtocolError, RemoteProtocolError
from edgepp.wire import codec
from edgepp.wire.field_types import Codec, Dtype

LOSSLESS: tuple[Codec, ...] = ("none", "lz4", "zstd")
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")


def _hidden(rows: int, width: int, dtype: str, seed: int) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(codec.DTYPES[dtype])


def _as_received(frames: list[codec.Frame]) -> list[memoryview]:
    return [memoryview(bytes(frame)) for frame in frames]


@given(st.integers(1, 9), st.integers(1, 70), st.sampled_from(DTYPES), st.sampled_from(LOSSLESS), st.integers(0, 99))
def test_lossless_codecs_return_the_same_bits(rows: int, width: int, dtype: Dtype, name: Codec, seed: int) -> None:
    hidden = _hidden(rows, width, dtype, seed)
    received = codec.decode(_as_received(codec.encode(hidden, name)), rows, width, dtype, name)
    assert received.dtype == hidden.dtype
    assert received.tobytes() == hidden.tobytes()


@given(st.integers(1, 9), st.integers(1, 70), st.sampled_from(DTYPES), st.integers(0, 99))
def test_int8_is_within_half_a_step_of_each_row(rows: int, width: int, dtype: Dtype, seed: int) -> None:
    hidden = _hidden(rows, width, dtype, seed)
    received = codec.decode(_as_received(codec.encode(hidden, "int8")), rows, width, dtype, "int8")
    step = np.abs(hidden.astype(np.float32)).max(axis=1, keepdims=True) / 127
    rounding = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    error = np.abs(received.astype(np.float32) - hidden.astype(np.float32))
    assert (error <= step * 0.5 + np.abs(hidden.astype(np.float32)) * rounding + 1e-7).all()


def test_bfloat16_stays_bfloat16() -> None:
    hidden = np.array([[1.0, -2.5, 3.140625]], ml_dtypes.bfloat16)
    frames = codec.encode(hidden, "none")
    assert len(frames[0]) == 6
    assert codec.decode(_as_received(frames), 1, 3, "bfloat16", "none").dtype == ml_dtypes.bfloat16


def test_no_rows_need_no_frame() -> None:
    assert codec.encode(np.empty((0, 8), np.float32), "none") == []
    assert codec.decode([], 0, 8, "float32", "none").shape == (0, 8)


def test_zero_rows_survive_int8() -> None:
    hidden = np.zeros((2, 8), np.float32)
    assert (codec.decode(_as_received(codec.encode(hidden, "int8")), 2, 8, "float32", "int8") == 0).all()


@given(st.sampled_from(codec.NAMES), st.lists(st.binary(max_size=64), max_size=4))
def test_wrong_frames_are_refused(name: Codec, frames: list[bytes]) -> None:
    if name == "none" and [len(f) for f in frames] == [24]:
        return
    if name == "int8" and [len(f) for f in frames] == [8, 6]:
        return
    with pytest.raises(RemoteProtocolError):
        codec.decode(frames, 2, 3, "float32", name)


@given(st.sampled_from(codec.NAMES), st.data())
def test_a_truncated_frame_is_refused(name: Codec, data: st.DataObject) -> None:
    frames = [bytes(frame) for frame in codec.encode(_hidden(4, 32, "float32", 1), name)]
    at = data.draw(st.integers(0, len(frames) - 1))
    frames[at] = frames[at][: data.draw(st.integers(0, len(frames[at]) - 1))]
    with pytest.raises(RemoteProtocolError):
        codec.decode(frames, 4, 32, "float32", name)


def test_a_compression_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.compress(bytes(1 << 28))
    assert len(bomb) < 50_000
    with pytest.raises(RemoteProtocolError, match="claims"):
        codec.decode([bomb], 4, 32, "float32", "zstd")


@pytest.mark.parametrize("array", [np.zeros((2, 3), np.float64), np.zeros((2, 3), object), np.zeros((2,), np.float32)])
def test_an_array_that_the_protocol_does_not_carry_is_a_local_error(array: npt.NDArray[Any]) -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode(array, "none")
