"""The interface of a ring, and the ring within one process.

A ring takes steps in order and returns their results in order. ``LocalRing`` runs them in the calling thread;
``NetworkRing`` sends them to stages in other processes. One conformance test holds both to the same behaviour.
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
    """One stage of a ring: for the engine core, errors and reports."""

    index: int
    layers: LayerRange
    node: str
    address: str
    """Of the control socket; empty for a stage in this process."""
    pid: int
    backend: str
    device: str
    chunk: int
    """Tokens per chunk with which the stage is efficient."""
    context: int
    """Positions that one sequence may take at most."""
    prefill_s: float
    """Measured seconds of computing per token of a prefill chunk."""
    decode_s: float
    """Measured seconds of computing per decode step of one sequence."""
    hop_s: float = 0.0
    """One-way seconds of a hidden state on the link into this stage; for the last stage with the way back."""
    bytes_per_s: float = 0.0
    """Measured bytes per second on the link into this stage; 0 where that was not measured."""
    rewinds: bool = True
    """Whether a sequence can go back to any position, and begin as a copy of another."""

    def __str__(self) -> str:
        where = f" at {self.address}" if self.address else ""
        return f"stage {self.index} (layers {self.layers}) on node {self.node}{where}"


@dataclass(frozen=True)
class Send:
    """A step of one sequence: hidden states (T, D) for positions ``[position, position + T)``.

    The last ``want`` rows of the result return. A sequence that is new to the stages begins with the first ``position``
    positions of ``source``, and may grow to ``capacity`` positions.
    """

    sequence: int
    position: int
    capacity: int
    want: int
    hidden: Array
    source: int = 0

    @property
    def positions_each(self) -> int:
        """Positions that the step computes per sequence: T."""
        return len(self.hidden)


@dataclass(frozen=True)
class SendBatch:
    """A micro-batch: hidden states (B, D), row i for position ``positions[i]`` of ``sequences[i]``. All rows return."""

    sequences: tuple[int, ...]
    positions: tuple[int, ...]
    hidden: Array

    @property
    def positions_each(self) -> int:
        """Positions that the step computes per sequence: 1."""
        return 1


@dataclass(frozen=True)
class Returned:
    """The result of a step: the hidden states that it asked for, and its times."""

    sequences: tuple[int, ...]
    positions: int
    """Positions that the step computed per sequence."""
    hidden: Array
    """(W, D): the last ``want`` rows of a ``Send``, or one row per sequence of a ``SendBatch``."""
    compute_s: tuple[float, ...]
    """Seconds of computing per stage."""
    ring_s: float
    """Seconds from sending to returning; what is not computing is codec, wire and queue."""


@dataclass(frozen=True)
class Failed:
    """The failure of a sequence, or of the whole ring where ``sequence`` is None."""

    sequence: int | None
    error: StageError


@dataclass(frozen=True)
class Rebuilt:
    """A stage holds the first ``length`` positions of a sequence again, which was rebuilt there."""

    stage: int
    sequence: int
    length: int


RingEvent = Returned | Failed | Rebuilt


@dataclass(frozen=True)
class StageStats:
    """A stage's state by its latest report."""

    sequences: int
    """Sequences that the stage holds."""
    kv_bytes: int
    """Bytes of their keys and values."""
    frames: int
    """Frames that the stage has computed."""
    dropped: int
    """Frames that the stage has dropped, such as those of freed sequences."""
    received_bytes: int = 0
    """Bytes that came over the link into the stage, probes included; 0 for a stage in this process."""
    sent_bytes: int = 0
    """Bytes that went to the next stage or back, probes included; 0 for a stage in this process."""
    reconnects: int = 0
    """Connections to the stage, and from there to the next one, that were made again after one had ended."""
    queue_s: float = 0.0
    """Seconds that steps have waited at the stage for earlier steps, as ``QueueTimes`` derives them."""
    silent_s: float = 0.0
    """Seconds since the stage last answered a ping; 0 for a stage in this process."""


class Ring(Protocol):
    """A pipeline of stages, first to last and back. Belongs to one thread."""

    stages: tuple[StageInfo, ...]

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """Let ``poll`` return early when ``mailbox`` has something."""

    def send(self, step: Send | SendBatch) -> None:
        """Put a step into the ring."""

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """Events within ``timeout_s`` seconds; returns at the first event."""

    def free(self, sequence: int) -> None:
        """Release a sequence on every stage; its steps in the ring give no event."""

    def stage_stats(self) -> list[StageStats]:
        """Each stage's state by its latest report, first to last. Safe from any thread."""

    def close(self) -> None:
        """Release everything."""


def frame_of(step: Send | SendBatch, epoch: int, number: int, codec_name: Codec, until: int) -> Forward | Batch:
    """The header of the frame that carries a step, which is followed by the step's hidden states.

    ``number`` is that of the step and of the frame on its link; ``until`` the last stage that computes a ``Send``.
    """
    width, dtype = step.hidden.shape[1], codec.dtype_name(step.hidden.dtype)
    if isinstance(step, SendBatch):
        return Batch(epoch, number, step.sequences, step.positions, width, dtype, codec_name, (), serial=number)
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
        until=until,
        serial=number,
    )


def returned(answer: Hidden | Batch, hidden: Array, positions: int, ring_s: float) -> Returned:
    """The event for a stage's ``answer`` to a step of ``positions`` positions per sequence."""
    compute_s = tuple(us / 1e6 for us in answer.compute_us)
    sequences = answer.sequences if isinstance(answer, Batch) else (answer.sequence,)
    return Returned(sequences, positions, hidden, compute_s, ring_s)


class LocalRing:
    """A ring of stages in this process, which computes a step when it is sent. Implements ``Ring``."""

    def __init__(self, stages: Sequence[tuple[StageInfo, StageModel]]) -> None:
        self.stages = tuple(info for info, _ in stages)
        self._runners = [ModelRunner(model, info.context) for info, model in stages]
        self._events: deque[RingEvent] = deque()
        self._poller = Poller[Any]()

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """Let ``poll`` return early when ``mailbox`` has something."""
        self._poller.add(mailbox)

    def send(self, step: Send | SendBatch) -> None:
        """Compute a step on all stages; ``poll`` returns the result."""
        start = time.perf_counter()
        frame, hidden = frame_of(step, 0, 0, "none", len(self.stages) - 1), step.hidden
        for info, runner in zip(self.stages, self._runners, strict=True):
            try:
                outcome = runner.run(frame, hidden)
            except BaseException as error:  # noqa: BLE001 - the stage's boundary, as in a process of its own
                reason = str(failure(error, "a step"))
                for sequence in sequences_of(frame):
                    runner.free(0, sequence)
                outcome = StepOutcome(None, hidden, [(sequence, reason) for sequence in sequences_of(frame)])
            for sequence, reason in outcome.faults:
                self._events.append(Failed(sequence, StageFault(f"{info} failed: {reason}")))
            if outcome.frame is None:
                return
            frame, hidden = outcome.frame, outcome.hidden
        answer, hidden = answer_to(frame, hidden)
        self._events.append(returned(answer, hidden, step.positions_each, time.perf_counter() - start))

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """Events so far; without one, wait for a mailbox for up to ``timeout_s`` seconds."""
        if not self._events:
            self._poller.wait(timeout_s)
        events = list(self._events)
        self._events.clear()
        return events

    def free(self, sequence: int) -> None:
        """Release a sequence on every stage."""
        for runner in self._runners:
            runner.free(0, sequence)

    def stage_stats(self) -> list[StageStats]:
        """Each stage's state now, first to last."""
        return [
            StageStats(one.sequences, one.model.kv_bytes, one.counters.frames, one.counters.dropped)
            for one in self._runners
        ]

    def close(self) -> None:
        """Free all sequences and the models."""
        for runner in self._runners:
            runner.forget(0)
        self._runners = []  # frees the models even while an error refers to this ring
