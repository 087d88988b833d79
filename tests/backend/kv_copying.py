"""Sequences of tiny stages, copied from one to another in pieces, and compared by what they compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgepp.backend.base import BackendOptions, StageModel
from edgepp.backend.loader import Backend
from edgepp.backend.mlx.backend import MlxBackend
from edgepp.backend.onnx.backend import OnnxBackend
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY
from edgepp.model.weights.checkpoint import Array, Checkpoint

BACKENDS: dict[str, type[Backend]] = {"onnx": OnnxBackend, "mlx": MlxBackend}
LAYERS, ALL = LayerRange(1, 3), LayerRange(0, 4)
CAPACITY = 90
FORMS = {
    ("onnx", None, "float32"): "1 float32 2x32",
    ("onnx", 8, "float32"): "1 int8 2x32",
    ("mlx", None, "float32"): "1 float32 2x32",
    ("mlx", None, "float16"): "1 float16 2x32",
    ("mlx", None, "bfloat16"): "1 bfloat16 2x32",
    ("mlx", 8, "float32"): "1 8bit/32 float32 2x32",
    ("mlx", 4, "float32"): "1 4bit/32 float32 2x32",
    ("mlx", 4, "bfloat16"): "1 4bit/32 bfloat16 2x32",
}
"""The layout of each backend, bits per key or value, and dtype to compute in."""


def load(checkpoint: Checkpoint, backend: str, kv_bits: int | None = None, dtype: str = "float32") -> StageModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgepp.backend.mlx.backend._compute_dtype", lambda *_: dtype)
        options = BackendOptions(exact=True, kv_bits=kv_bits)
        return BACKENDS[backend]().load_stage(checkpoint, LAYERS, options)


def states(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, TINY.hidden)).astype(np.float32)


def begin(stage: StageModel, sequence: int, length: int) -> None:
    """Open a sequence of ``length`` positions, the last few of them decoded one by one."""
    stage.open(sequence, CAPACITY)
    hidden = states(length, length)
    decoded = min(3, length - 1)
    stage.extend(sequence, hidden[: length - decoded])
    for row in hidden[length - decoded :]:
        stage.decode([sequence], row[None])


def export(stage: StageModel, sequence: int, layers: LayerRange, start: int, stop: int) -> bytes:
    return b"".join(stage.export_kv(sequence, layers, start, stop))


def copy(stage: StageModel, source: int, sequence: int, cuts: Sequence[int], to: StageModel | None = None) -> None:
    """Make ``sequence`` of what ``source`` exports layer by layer, the last first, in pieces that end at ``cuts``."""
    to = to or stage
    to.open(sequence, CAPACITY)
    for layer in reversed(range(LAYERS.start, LAYERS.stop)):
        one = LayerRange(layer, layer + 1)
        for start, stop in zip((0, *cuts), cuts, strict=False):
            to.import_kv(sequence, one, start, stop, stage.export_kv(source, one, start, stop))
    to.set_length(sequence, cuts[-1])


def check_same(stage: StageModel, left: Sequence[int], right: Sequence[int], other: StageModel | None = None) -> None:
    """Check that sequences ``left``, and ``right`` of the other stage, compute the same bits alone and together."""
    other = other or stage
    for n in range(3):
        rows = states(len(left), 50 + n)
        np.testing.assert_array_equal(stage.decode(left, rows), other.decode(right, rows))
    for one, same in zip(left, right, strict=True):
        assert stage.length(one) == other.length(same)
        np.testing.assert_array_equal(stage.extend(one, states(5, 9)), other.extend(same, states(5, 9)))
        assert export(stage, one, LAYERS, 0, stage.length(one)) == export(other, same, LAYERS, 0, other.length(same))
