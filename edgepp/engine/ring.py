"""The interface of a ring: its steps, events and stages.

A ring takes steps in order and returns their results in order. ``LocalRing`` runs them in the calling thread;
``NetworkRing`` sends them to stages in other processes. One conformance test holds both to the same behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from edgepp.backend.candidates import width_of
from edgepp.errors import StageError
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array
from edgepp.tracing.request_trace import StepTrace
from edgepp.wire.field_types import ResultForm
from edgepp.wire.mailbox import Mailbox


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
    back_s: float = 0.0
    """The part of ``hop_s`` that is the way back to the coordinator: 0 for all stages but the last one."""
    bytes_per_s: float = 0.0
    """Measured bytes per second on the link into this stage; 0 where that was not measured."""
    rewinds: bool = True
    """Whether a sequence can go back to any position, and begin as a copy of another."""
    has_head: bool = False
    """Whether the stage computes final norm and output head, and so can return logits and candidates."""

    def __str__(self) -> str:
        where = f" at {self.address}" if self.address else ""
        return f"stage {self.index} (layers {self.layers}) on node {self.node}{where}"


class ResultKind(NamedTuple):
    """Form of each wanted row of a step's result: hidden state, logits, or the likeliest tokens."""

    form: ResultForm = "hidden"
    candidates: int = 0
    """Number of likeliest tokens, for the form ``candidates``."""

    def width(self, hidden_size: int, vocabulary: int) -> int:
        """Columns of each row of the result."""
        match self.form:
            case "hidden":
                return hidden_size
            case "logits":
                return vocabulary
            case "candidates":
                return width_of(self.candidates)


HIDDEN_STATES = ResultKind()


@dataclass(frozen=True)
class Send:
    """A step of one sequence: hidden states (T, D) for positions ``[position, position + T)``.

    The result of the last ``want`` rows returns. A sequence that is new to the stages begins with the first
    ``position`` positions of ``source``, and may grow to ``capacity`` positions.
    """

    sequence: int
    position: int
    capacity: int
    want: int
    hidden: Array
    source: int = 0
    result: ResultKind = HIDDEN_STATES
    request: str = ""
    """The name of the request in logs, if this step may open the sequence; else empty."""
    trace: StepTrace | None = None
    """Where the times of the step are recorded; None for a step of requests that are not traced."""

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
    result: ResultKind = HIDDEN_STATES
    trace: StepTrace | None = None

    @property
    def positions_each(self) -> int:
        """Positions that the step computes per sequence: 1."""
        return 1


@dataclass(frozen=True)
class Returned:
    """The result of a step: the rows that it asked for, and its times."""

    sequences: tuple[int, ...]
    positions: int
    """Positions that the step computed per sequence."""
    rows: Array
    """(W, D), or as wide as its ``result`` is: the last ``want`` rows of a ``Send``, or one row per sequence of a
    ``SendBatch``."""
    compute_s: tuple[float, ...]
    """Seconds of computing per stage."""
    ring_s: float
    """Seconds from sending to returning; what is not computing is codec, wire and queue."""
    result: ResultKind = HIDDEN_STATES
    """What the rows are."""
    queue_s: tuple[float, ...] = ()
    """Seconds of waiting for earlier steps per stage, as ``QueueTimes`` derives them; empty where no step waits."""


@dataclass(frozen=True)
class Failed:
    """The failure of a sequence, or of the whole ring where ``sequence`` is None."""

    sequence: int | None
    error: StageError


@dataclass(frozen=True)
class SequenceRebuilt:
    """A stage holds the first ``length`` positions of a sequence again, which was rebuilt there."""

    stage: int
    sequence: int
    length: int


RingEvent = Returned | Failed | SequenceRebuilt


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
    void: int = 0
    """Frames that the stage did not compute to the end: a guess before them was wrong, or their sequence was freed."""
    clock_offset_s: float | None = None
    """Seconds by which the stage's monotonic clock is ahead of the coordinator's; None where that is not known."""
    clock_error_s: float | None = None
    """Seconds by which that may be wrong."""


class Ring(Protocol):
    """A pipeline of stages, first to last and back. Belongs to one thread."""

    stages: tuple[StageInfo, ...]
    overlaps: bool
    """Whether ``send`` returns before the step is computed, so that several steps are computed at the same time."""

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """Let ``poll`` return early when ``mailbox`` has something."""

    def send(self, step: Send | SendBatch) -> None:
        """Put a step into the ring.

        It makes earlier steps of one of its sequences void that begin at the same or a later position: no event comes
        of them, unless their results came before.
        """

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """Events within ``timeout_s`` seconds; returns at the first event."""

    def free(self, sequence: int) -> None:
        """Release a sequence on every stage; its steps in the ring give no event."""

    def stage_stats(self) -> list[StageStats]:
        """Each stage's state by its latest report, first to last. Safe from any thread."""

    def close(self) -> None:
        """Release everything."""
