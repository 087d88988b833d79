"""Rings in this process that are lost when a test wants it."""

from __future__ import annotations

from pathlib import Path

from edgepp import backend
from edgepp.backend.base import BackendOptions
from edgepp.engine.local_ring import LocalRing
from edgepp.engine.ring import Failed, RingEvent, Send, SendBatch
from edgepp.errors import StageLost
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint
from tests.builders.stages import stage_info

LOST = StageLost("stage 1 is gone", "ask again", gone=1)


class MortalRing(LocalRing):
    """A ring that is lost by ``error`` after ``steps`` steps: a stage process that is killed, without the process."""

    def __init__(
        self, path: Path, splits: tuple[LayerRange, ...], steps: int | None = None, error: StageLost = LOST
    ) -> None:
        checkpoint = Checkpoint.open(path)
        chosen, stages = backend.choose("onnx", checkpoint), []
        for index, layers in enumerate(splits):
            model = chosen.load_stage(checkpoint, layers, BackendOptions(threads=1, exact=True))
            info = stage_info(index=index, layers=layers, chunk=model.chunk, context=checkpoint.context)
            stages.append((info, model))
        super().__init__(stages)
        self._steps, self._error = steps, error
        self.closed = False

    def send(self, step: Send | SendBatch) -> None:
        if self._steps is not None:
            self._steps -= 1
        super().send(step)

    def poll(self, timeout_s: float) -> list[RingEvent]:
        if self._steps is not None and self._steps <= 0:
            self._steps = None
            self._events.clear()
            return [Failed(None, self._error)]
        return super().poll(timeout_s)

    def close(self) -> None:
        self.closed = True
        super().close()
