"""A decoder session with its inputs and outputs bound to memory; recent bindings are kept, since binding is slow."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from edgepp.backend.onnx.architecture import Rope
from edgepp.backend.onnx.kv_arena import LANES, Arena
from edgepp.model.weights.checkpoint import Array

_BINDINGS = 2 * LANES  # one per lane and as many for batches; the least recently used binding is dropped


class RopeTables:
    """Cosines and sines of the positions, computed as far as the longest lane reaches."""

    def __init__(self, rope: Rope) -> None:
        self._rope = rope
        self._tables = rope.tables(0)

    def up_to(self, positions: int) -> tuple[Array, Array]:
        """Cosines and sines, each (positions, head_dim / 2)."""
        if len(self._tables[0]) < positions:
            self._tables = self._rope.tables(positions)
        cos, sin = self._tables
        return cos[:positions], sin[:positions]


class BoundSession:
    """Runs a ``DecoderGraph`` over neighbouring lanes of an arena."""

    def __init__(self, session: ort.InferenceSession, rope: Rope) -> None:
        self._session = session
        self._tables = RopeTables(rope)
        self._bound: OrderedDict[tuple[Arena, int, int], _Binding] = OrderedDict()

    def run(self, arena: Arena, first: int, hidden: Array, totals: Sequence[int]) -> Array:
        """Run ``hidden`` (B, T, D) in lanes ``first`` to ``first + B - 1``; returns float32 (B, T, D).

        Row i ends at position ``totals[i] - 1``; the keys and values of its T positions are written to the lane. B or T
        is 1.
        """
        key = (arena, first, len(hidden))
        bound = self._bound.get(key)
        if bound is None:
            if len(self._bound) == _BINDINGS:
                self._bound.popitem(last=False)
            bound = self._bound[key] = _Binding(self._session, self._tables, *key)
        self._bound.move_to_end(key)
        return bound.run(hidden, totals)


class _Binding:
    """One session bound to ``rows`` lanes of an arena from ``first`` on."""

    def __init__(self, session: ort.InferenceSession, tables: RopeTables, arena: Arena, first: int, rows: int) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._last = np.zeros(rows, np.int32)
        self._total = np.zeros((), np.int32)
        self._hidden = self._out = np.empty((rows, 0, 0), np.float32)
        self._tables = tables.up_to(arena.stride)
        self._memory = arena.memory
        self._input("last", self._last)
        self._input("total", self._total)
        for name, table in zip(("cos", "sin"), self._tables, strict=True):
            self._input(name, table)
        for name, memory in self._memory.items():
            self._input(f"past.{name}", memory[first : first + rows])
            self._output(f"present.{name}", memory[first : first + rows])

    def run(self, hidden: Array, totals: Sequence[int]) -> Array:
        """Run ``hidden`` (B, T, D), where row i ends at position ``totals[i] - 1``; returns a copy of the output."""
        if self._hidden.shape != hidden.shape:
            self._hidden = np.empty(hidden.shape, np.float32)
            self._out = np.empty_like(self._hidden)
            self._input("hidden", self._hidden)
            self._output("out", self._out)
        self._hidden[:] = hidden
        self._last[:] = totals
        self._total[()] = self._last.max()
        self._last -= 1
        self._session.run_with_iobinding(self._binding)
        return self._out.copy()

    def _input(self, name: str, array: Array) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _output(self, name: str, array: Array) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
