"""A decoder session with its inputs and outputs bound to memory; recent bindings are kept, since binding is slow."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from edgepp.backend.base import StepInterrupted
from edgepp.backend.onnx.architecture import Rope
from edgepp.backend.onnx.graph_builder import ORT_ERRORS
from edgepp.backend.onnx.kv_arena import LANES, Arena
from edgepp.model.weights.checkpoint import Array

_BINDINGS = 2 * LANES  # one per lane and as many for batches; the least recently used binding is dropped


class RunInterruption:
    """Ends the run of a session before its next operator; implements ``Interruption``."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()
        """Options of the runs that end."""

    def set(self) -> None:
        """End the present run, which raises ``StepInterrupted``."""
        self.options.terminate = True

    def clear(self) -> None:
        """Let the next runs come to their end."""
        self.options.terminate = False


class RopeTables:
    """Cosines and sines of the positions, computed as far as the longest lane reaches."""

    def __init__(self, rope: Rope) -> None:
        self._rope = rope
        self._tables = rope.tables(0)

    def up_to(self, positions: int) -> tuple[Array, Array]:
        """Float32 cosines and sines of the first ``positions`` positions, each (positions, head_dim / 2)."""
        if len(self._tables[0]) < positions:
            self._tables = self._rope.tables(positions)
        cos, sin = self._tables
        return cos[:positions], sin[:positions]


class BoundLanes:
    """Neighbouring lanes of an arena, and the positions of a step in them, as inputs and outputs of sessions."""

    def __init__(self, tables: RopeTables, arena: Arena, first: int, rows: int) -> None:
        self._last = np.zeros(rows, np.int32)
        self._total = np.zeros((), np.int32)
        self._tables = tables.up_to(arena.stride)
        self._memory = {name: memory[first : first + rows] for name, memory in arena.memory.items()}

    def bind(self, binding: ort.IOBinding, names: Sequence[str]) -> None:
        """Bind positions, rotation, and the keys and values ``names`` of the lanes."""
        bind_input(binding, "last", self._last)
        bind_input(binding, "total", self._total)
        for name, table in zip(("cos", "sin"), self._tables, strict=True):
            bind_input(binding, name, table)
        for name in names:
            bind_input(binding, f"past.{name}", self._memory[name])
            bind_output(binding, f"present.{name}", self._memory[name])

    def move_to(self, totals: Sequence[int]) -> None:
        """Let row i of the next run end at position ``totals[i] - 1``."""
        self._last[:] = totals
        self._total[()] = self._last.max()
        self._last -= 1


def bind_input(binding: ort.IOBinding, name: str, array: Array) -> None:
    """Bind the input ``name`` to the memory of ``array``, which must exist as long as ``binding`` is used."""
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def bind_output(binding: ort.IOBinding, name: str, array: Array) -> None:
    """Bind the output ``name`` to the memory of ``array``, which must exist as long as ``binding`` is used."""
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


class BoundSession:
    """A session that runs a ``DecoderGraph`` over neighbouring lanes of an arena."""

    def __init__(self, session: ort.InferenceSession, rope: Rope, interruption: RunInterruption) -> None:
        self._session = session
        self._interruption = interruption
        self._tables = RopeTables(rope)
        self._bound: OrderedDict[tuple[Arena, int, int], _Binding] = OrderedDict()

    def run(self, arena: Arena, first: int, hidden: Array, totals: Sequence[int]) -> Array:
        """Run ``hidden`` (B, T, D) in lanes ``first`` to ``first + B - 1``; returns float32 (B, T, D).

        Row i ends at position ``totals[i] - 1``; the keys and values of its T positions are written to the lane. B or T
        is 1.

        Raises:
            StepInterrupted: the interruption was set; keys and values behind the rows' earlier positions are undefined.
        """
        key = (arena, first, len(hidden))
        bound = self._bound.get(key)
        if bound is None:
            if len(self._bound) == _BINDINGS:
                self._bound.popitem(last=False)
            bound = self._bound[key] = _Binding(self._session, self._tables, *key)
        self._bound.move_to_end(key)
        try:
            return bound.run(hidden, totals, self._interruption.options)
        except ORT_ERRORS:
            if self._interruption.options.terminate:
                raise StepInterrupted("the step was interrupted") from None
            raise


class _Binding:
    """One session bound to ``rows`` lanes of an arena from ``first`` on."""

    def __init__(self, session: ort.InferenceSession, tables: RopeTables, arena: Arena, first: int, rows: int) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._lanes = BoundLanes(tables, arena, first, rows)
        self._hidden = self._out = np.empty((rows, 0, 0), np.float32)
        self._lanes.bind(self._binding, list(arena.memory))

    def run(self, hidden: Array, totals: Sequence[int], options: ort.RunOptions) -> Array:
        """Run ``hidden`` (B, T, D), where row i ends at position ``totals[i] - 1``; returns a copy of the output."""
        if self._hidden.shape != hidden.shape:
            self._hidden = np.empty(hidden.shape, np.float32)
            self._out = np.empty_like(self._hidden)
            bind_input(self._binding, "hidden", self._hidden)
            bind_output(self._binding, "out", self._out)
        self._hidden[:] = hidden
        self._lanes.move_to(totals)
        self._session.run_with_iobinding(self._binding, options)
        return self._out.copy()
