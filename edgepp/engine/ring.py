"""The ring as the engine sees it, and its one-process form.

A ring takes steps in order and gives their results back in order. ``LocalRing`` runs them in the calling thread;
``NetworkRing`` (in ``network``) sends them to stages elsewhere. One conformance test holds both to the same behaviour.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgepp.backend.base import StageModel
from edgepp.error_boundary import failure
from edgepp.errors import StageError, StageFault
from edgepp.layers import LayerRange
from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.model_runner import ModelRunner, StepOutcome, answer_to, sequences_of
from edgepp.wire import codec
from edgepp.wire.field_types import Codec
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.messages import Batch, Forward, Hidden


@dataclass(frozen=True)
class StageInfo:
    """One stage of a ring, for plans, errors and reports."""

    index: int
    layers: LayerRange
    node: str
    address: str
    pid: int
    backend: str
    device: str
    chunk: int
    context: int
    prefill_s: float
    """Measured seconds per token of a prefill chunk."""
    decode_s: float
    """Measured seconds of a decode step."""
    hop_s: float = 0.0
    """One-way seconds of a hidden state on the link into this stage; the last stage's includes the way back."""
    bytes_per_s: float = 0.0
    """Measured bytes per second on the link from the stage before; 0 where that was not measured."""
    rewinds: bool = True
    """Whether its sequences can go back to any position, and begin as copies of others."""

    def __str__(self) -> str:
        where = f" at {self.address}" if self.address else ""
        return f"stage {self.index} (layers {self.layers}) on node {self.node}{where}"


@dataclass(frozen=True)
class Send:
    """Hidden states (T, D) for positions ``[position, position + T)`` of a sequence; ``want`` last rows return.

    A sequence that the stages do not know begins with the first ``position`` positions of ``source``.
    """

    sequence: int
    position: int
    capacity: int
    want: int
    hidden: Array
    source: int = 0

    @property
    def positions_each(self) -> int:
        """Positions that the step computes of its sequence: T."""
        return len(self.hidden)


@dataclass(frozen=True)
class SendBatch:
    """Hidden states (B, D), row i for position ``positions[i]`` of ``sequences[i]``; every row returns."""

    sequences: tuple[int, ...]
    positions: tuple[int, ...]
    hidden: Array

    @property
    def positions_each(self) -> int:
        """Positions that the step computes of each sequence: one."""
        return 1


@dataclass(frozen=True)
class Returned:
    """A step came round: the wanted hidden states of each of its sequences, and where its time went."""

    sequences: tuple[int, ...]
    positions: int
    """How many positions of each sequence the step computed."""
    hidden: Array
    """(W, D): a chunk's wanted rows, or one row per sequence of a batch."""
    compute_s: tuple[float, ...]
    """Each stage's own time."""
    ring_s: float
    """The whole way round; what is not computing is codec, wire and queue."""


@dataclass(frozen=True)
class Failed:
    """A sequence failed, or, where ``sequence`` is None, the whole ring did."""

    sequence: int | None
    error: StageError


RingEvent = Returned | Failed


@dataclass(frozen=True)
class StageStats:
    """A stage's state as last heard."""

    sequences: int
    kv_bytes: int
    frames: int
    dropped: int


class Ring(Protocol):
    """A pipeline of stages, first to last and back. Belongs to one thread."""

    stages: tuple[StageInfo, ...]

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """Let ``poll`` return early when ``mailbox`` has something."""

    def send(self, step: Send | SendBatch) -> None:
        """Put a step into the ring."""

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """What came round within ``timeout_s`` seconds; returns at the first event."""

    def free(self, sequence: int) -> None:
        """Release a sequence on every stage; its steps in the ring come to nothing."""

    def stage_stats(self) -> list[StageStats]:
        """Each stage's state as last heard. Safe from any thread."""

    def close(self) -> None:
        """Release everything."""


def frame_of(step: Send | SendBatch, epoch: int, number: int, codec_name: Codec) -> Forward | Batch:
    """The frame that carries a step; its hidden states follow it."""
    width, dtype = step.hidden.shape[1], codec.dtype_name(step.hidden.dtype)
    if isinstance(step, SendBatch):
        return Batch(epoch, number, step.sequences, step.positions, width, dtype, codec_name, ())
    return Forward(
        epoch=epoch,
        sequence=step.sequence,
        step=number,
        position=step.position,
        capacity=step.capacity,
        source=step.source,
        wanted_rows=step.want,
        rows=len(step.hidden),
        width=width,
        dtype=dtype,
        codec=codec_name,
        compute_us=(),
    )


def returned(answer: Hidden | Batch, hidden: Array, positions: int, ring_s: float) -> Returned:
    """The event that an answer with its hidden states makes, after a step of so many ``positions`` per sequence."""
    compute_s = tuple(us / 1e6 for us in answer.compute_us)
    sequences = answer.sequences if isinstance(answer, Batch) else (answer.sequence,)
    return Returned(sequences, positions, hidden, compute_s, ring_s)


class LocalRing:
    """Stages in this process, one after the other: a step is computed when it is sent."""

    def __init__(self, stages: Sequence[tuple[StageInfo, StageModel]]) -> None:
        self.stages = tuple(info for info, _ in stages)
        self._workers = [ModelRunner(model, info.context) for info, model in stages]
        self._events: deque[RingEvent] = deque()
        self._poller = Poller[Any]()

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """See ``Ring``."""
        self._poller.add(mailbox)

    def send(self, step: Send | SendBatch) -> None:
        """See ``Ring``."""
        start = time.perf_counter()
        frame, hidden = frame_of(step, 0, 0, "none"), step.hidden
        for info, worker in zip(self.stages, self._workers, strict=True):
            try:
                outcome = worker.run(frame, hidden)
            except BaseException as error:  # noqa: BLE001 - the stage's boundary, as in a process of its own
                reason = str(failure(error, "a step"))
                for sequence in sequences_of(frame):
                    worker.free(0, sequence)
                outcome = StepOutcome(None, hidden, [(sequence, reason) for sequence in sequences_of(frame)])
            for sequence, reason in outcome.faults:
                self._events.append(Failed(sequence, StageFault(f"{info} failed: {reason}")))
            if outcome.frame is None:
                return
            frame, hidden = outcome.frame, outcome.hidden
        answer, hidden = answer_to(frame, hidden)
        self._events.append(returned(answer, hidden, step.positions_each, time.perf_counter() - start))

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """See ``Ring``."""
        if not self._events:
            self._poller.wait(timeout_s)
        events = list(self._events)
        self._events.clear()
        return events

    def free(self, sequence: int) -> None:
        """See ``Ring``."""
        for worker in self._workers:
            worker.free(0, sequence)

    def stage_stats(self) -> list[StageStats]:
        """See ``Ring``."""
        return [StageStats(w.sequences, w.model.kv_bytes, w.counters.frames, w.counters.dropped) for w in self._workers]

    def close(self) -> None:
        """See ``Ring``."""
        for worker in self._workers:
            worker.forget(0)
        self._workers = []  # with the models; see ``EngineLoop``
