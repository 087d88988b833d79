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
from edgepp.errors import StageError, StageFault
from edgepp.layers import LayerRange
from edgepp.model.checkpoint import Array
from edgepp.node.worker import Worker, answer_to
from edgepp.wire.messages import Forward
from edgepp.wire.transport import Mailbox, Poller


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
    """Measured seconds a token of a prefill chunk."""
    decode_s: float
    """Measured seconds of a decode step."""
    hop_s: float = 0.0
    """One-way seconds of a hidden state on the link into this stage; the last stage's includes the way back."""
    bytes_s: float = 0.0
    """Measured bytes a second on the link from the stage before; 0 where that was not measured."""

    def __str__(self) -> str:
        where = f" at {self.address}" if self.address else ""
        return f"stage {self.index} (layers {self.layers}) on node {self.node}{where}"


@dataclass(frozen=True)
class Send:
    """Hidden states (T, D) for positions ``[position, position + T)`` of a sequence; ``want`` last rows return."""

    sequence: int
    position: int
    capacity: int
    want: int
    hidden: Array


@dataclass(frozen=True)
class Returned:
    """A step came round: the wanted hidden states, and where its time went."""

    sequence: int
    end: int
    hidden: Array
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
class Gauge:
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

    def send(self, step: Send) -> None:
        """Put a step into the ring."""

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """What came round within ``timeout_s`` seconds; returns at the first event."""

    def free(self, sequence: int) -> None:
        """Release a sequence on every stage; its steps on the way come to nothing."""

    def gauges(self) -> list[Gauge]:
        """Each stage's state as last heard. Safe from any thread."""

    def close(self) -> None:
        """Release everything."""


class LocalRing:
    """Stages in this process, one after the other: a step is computed when it is sent."""

    def __init__(self, stages: Sequence[tuple[StageInfo, StageModel]]) -> None:
        self.stages = tuple(info for info, _ in stages)
        self._workers = [Worker(model) for _, model in stages]
        self._events: deque[RingEvent] = deque()
        self._poller = Poller[Any]()

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """See ``Ring``."""
        self._poller.add(mailbox)

    def send(self, step: Send) -> None:
        """See ``Ring``."""
        rows, width = step.hidden.shape
        frame = Forward(
            0, step.sequence, 0, step.position, step.capacity, step.want, rows, width, "float32", "none", ()
        )
        start = time.perf_counter()
        result = (frame, step.hidden)
        for info, worker in zip(self.stages, self._workers, strict=True):
            try:
                passed = worker.forward(*result)
            except StageFault as error:
                self._events.append(Failed(step.sequence, StageFault(f"{info} failed: {error}", error.hint)))
                return
            if passed is None:
                return
            result = passed
        answer, hidden = answer_to(*result)
        compute_s = tuple(us / 1e6 for us in answer.compute_us)
        ring_s = time.perf_counter() - start
        self._events.append(Returned(step.sequence, answer.end, hidden, compute_s, ring_s))

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

    def gauges(self) -> list[Gauge]:
        """See ``Ring``."""
        return [Gauge(w.sequences, w.model.kv_bytes, w.counters.frames, w.counters.dropped) for w in self._workers]

    def close(self) -> None:
        """See ``Ring``."""
        for worker in self._workers:
            worker.forget(0)
