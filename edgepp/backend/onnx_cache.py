"""The KV cache of one sequence: memory that ONNX Runtime appends to in place, bound to a session once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from edgepp.backend.onnx_family import Architecture, Rope
from edgepp.errors import StageFault
from edgepp.layers import LayerRange
from edgepp.model.checkpoint import Array

FIRST_POSITIONS = 256
"""Positions that a new sequence has room for; doubled whenever they run out."""


class RopeTables:
    """Cosines and sines, computed as far as the longest sequence has come."""

    def __init__(self, rope: Rope) -> None:
        self._rope = rope
        self._tables = rope.tables(0)

    def upto(self, positions: int) -> tuple[Array, Array]:
        """Both tables, (positions, head_dim / 2)."""
        if len(self._tables[0]) < positions:
            self._tables = self._rope.tables(positions)
        cos, sin = self._tables
        return cos[:positions], sin[:positions]


@dataclass(frozen=True)
class CacheShape:
    """What the caches of one stage have in common."""

    layers: LayerRange
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, architecture: Architecture, layers: LayerRange) -> CacheShape:
        """The shape that ``layers`` of the architecture need."""
        return cls(layers, architecture.kv_heads, architecture.head_dim)

    @property
    def position_bytes(self) -> int:
        """Bytes of one position over all layers: float32 keys and values."""
        return len(self.layers) * 2 * self.kv_heads * self.head_dim * 4


class SequenceCache:
    """Keys and values of one sequence; ``length`` positions are filled."""

    def __init__(self, session: ort.InferenceSession, shape: CacheShape, tables: RopeTables, capacity: int) -> None:
        self.length = 0
        self.capacity = capacity
        self._session = session
        self._shape = shape
        self._tables = tables
        self._positions = 0
        self._last = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._memory: dict[str, Array] = {}
        self._hidden = self._out = np.empty((1, 0, 0), np.float32)
        self._binding = session.io_binding()
        _bind_input(self._binding, "last", self._last)
        _bind_input(self._binding, "total", self._total)
        self._reserve(1)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return self._positions * self._shape.position_bytes

    def run(self, hidden: Array) -> Array:
        """Run ``hidden`` (T, D) at the next T positions and keep their keys and values; returns float32 (T, D).

        Raises:
            StageFault: the sequence would outgrow its capacity.
        """
        total = self.length + len(hidden)
        if total > self._positions:
            self._reserve(total)
        if self._hidden.shape[1:] != hidden.shape:
            self._bind_ends(hidden.shape)
        self._hidden[0] = hidden
        self._last[0] = total - 1
        self._total[()] = total
        self._session.run_with_iobinding(self._binding)
        self.length = total
        result: Array = self._out[0].copy()
        return result

    def _bind_ends(self, shape: tuple[int, ...]) -> None:
        """Memory for hidden states of ``shape`` (T, D), bound until another comes: binding takes long."""
        self._hidden = np.empty((1, *shape), np.float32)
        self._out = np.empty_like(self._hidden)
        _bind_input(self._binding, "hidden", self._hidden)
        _bind_output(self._binding, "out", self._out)

    def _reserve(self, positions: int) -> None:
        """Make room, one layer's memory after the other, so that growing never needs twice the cache."""
        if positions > self.capacity:
            raise StageFault(
                f"the sequence would have {positions} positions, and it was opened for {self.capacity}",
                "shorten the prompt or ask for fewer tokens",
            )
        room = max(self._positions, FIRST_POSITIONS)
        while room < positions:
            room *= 2
        room = min(room, self.capacity)
        for name in _names(self._shape.layers):
            grown = self._grown(self._memory.get(name), room)
            _bind_input(self._binding, f"past.{name}", grown)
            _bind_output(self._binding, f"present.{name}", grown)
            self._memory[name] = grown
        for name, table in zip(("cos", "sin"), self._tables.upto(room), strict=True):
            _bind_input(self._binding, name, table)
            self._memory[name] = table
        self._positions = room

    def _grown(self, old: Array | None, positions: int) -> Array:
        new = np.empty((1, self._shape.kv_heads, positions, self._shape.head_dim), np.float32)
        if old is not None:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new


def _names(layers: LayerRange) -> Sequence[str]:
    return [f"{layer}.{part}" for layer in range(layers.start, layers.stop) for part in ("key", "value")]


def _bind_input(binding: ort.IOBinding, name: str, array: Array) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _bind_output(binding: ort.IOBinding, name: str, array: Array) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
