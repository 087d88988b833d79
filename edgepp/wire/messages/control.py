"""Messages on the control socket of a stage: joining a ring, liveness, cancelled sequences, and what failed."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from edgepp.wire.field_types import (
    Addresses,
    Count,
    Dtype,
    Id,
    Label,
    Layer,
    LinkCodec,
    LinkKey,
    Port,
    Route,
    Rows,
    Stage,
    Text,
    WeightDigests,
    Width,
)


class Hello(NamedTuple):
    """Coordinator to stage: introduces the node ``node`` and asks for a ``Welcome``."""

    node: Label


class Welcome(NamedTuple):
    """Stage to coordinator, in reply to ``Hello``: all that is needed to check a plan and to set deadlines."""

    node: Label
    pid: Count
    data_port: Port
    model: Label
    fingerprint: Label
    commit: Label
    """Hub commit of the weights; empty where unknown."""
    start: Layer
    stop: Layer
    num_layers: Layer
    hidden_size: Width
    context: Count
    backend: Label
    device: Label
    dtype: Dtype
    exact: bool
    chunk: Rows
    weight_bytes: Count
    prefill_us: Count
    """Measured microseconds per token of a prefill chunk."""
    decode_us: Count
    """Measured microseconds of a decode step."""
    rewinds: bool
    """Whether sequences can be truncated to any position and forked."""
    has_head: bool = False
    """Whether the stage computes final norm and output head, and so can return logits and candidates."""
    folder: Label = ""
    """Folder of the model on the stage's machine."""
    weights: WeightDigests = ()
    """What tells the weights in this folder from others of the same architecture, also of layers that others run."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        return "" if self.start < self.stop <= self.num_layers else "has an empty or impossible layer range"


class Attach(NamedTuple):
    """Coordinator to stage: join the ring ``epoch`` as stage number ``stage``.

    The stage sends to ``next_addresses``, or, as the last stage, to the coordinator's data connection ``route``.
    """

    epoch: Id
    stage: Stage
    next_addresses: Addresses
    """Addresses of the next stage, of which the first to answer is used; empty for the last stage."""
    next_key: LinkKey
    route: Route
    codec: LinkCodec
    return_bytes_per_s: Count
    """Rate of the link from the last stage to the coordinator, as the coordinator measured it; 0 for other stages."""
    previous_key: LinkKey = ""
    """Key of the only sender whose frames of the epoch are accepted: the previous stage, or for stage 0 the
    coordinator."""
    inherits: Id = 0
    """Epoch that this ring replaces, whose sequences, log and copies the stage keeps; 0 for none."""
    keeper_addresses: Addresses = ""
    """Addresses of the data socket of the stage to which this stage sends copies of its keys and values; empty for
    none."""
    keeper_key: LinkKey = ""
    copies_from: LinkKey = ""
    """Key of the only stage whose copies this stage keeps."""
    keeps_copies: bool = False
    """Whether this stage keeps copies for another one."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        if self.next_key and not self.next_addresses:
            return "has the key of a next stage without its addresses"
        if self.keeper_key and not self.keeper_addresses:
            return "has the key of a keeper of copies without its addresses"
        if self.copies_from and not self.keeps_copies:
            return "has the key of a sender of copies, and accepts none"
        return "inherits its own epoch" if self.inherits and self.inherits == self.epoch else ""


class Attached(NamedTuple):
    """Stage to coordinator, in reply to ``Attach``: the stage has joined, and the link to the next stage works."""

    epoch: Id
    echo_us: Count
    """Round-trip time of one hidden state to the next stage, in microseconds; 0 for the last stage."""
    bytes_per_s: Count
    """Measured rate to the next stage, one way; 0 for the last stage."""


class Unreached(NamedTuple):
    """Stage to coordinator, in reply to ``Attach``: the link to the next stage cannot be made, and why."""

    epoch: Id
    reason: Text


class Refused(NamedTuple):
    """Stage to coordinator: why a control message was refused. Coordinator to node: why ``Enrol`` or ``Adopt`` was."""

    reason: Text


class Detach(NamedTuple):
    """Coordinator to stage: forget the epoch and free all of its sequences."""

    epoch: Id


class Free(NamedTuple):
    """Coordinator to stage: cancel a sequence, free its KV cache, and drop its frames that are still under way."""

    epoch: Id
    sequence: Id


class Void(NamedTuple):
    """Coordinator to stage: frames of a sequence at ``position`` or later are void that have a number below ``step``.

    A stage does not compute them, and stops the one that it computes, if it can.
    """

    epoch: Id
    sequence: Id
    step: Id
    """Number of the step that replaces them, as in ``Forward.step``."""
    position: Count


class Ping(NamedTuple):
    """Coordinator to stage: asks for a ``Pong``, and keeps the epoch alive."""

    epoch: Id
    sent_us: Id = 0
    """When the coordinator sent the message, by its own clock (``wire.frame_marks.clock_us``)."""


class Pong(NamedTuple):
    """Stage to coordinator, in reply to ``Ping``: state of the stage process; the counts are of all epochs."""

    epoch: Id
    known: bool
    """False once the stage has forgotten the epoch."""
    busy_us: Count
    """Microseconds since the present step began; 0 for an idle stage."""
    frames: Count
    dropped: Count
    """Dropped frames."""
    void: Count
    """Frames that were not computed, since a later frame of the sequence began at their position or before."""
    sequences: Count
    """Open sequences."""
    kv_bytes: Count
    """Bytes of their keys and values, of their log, and of the copies for another stage."""
    received_bytes: Count
    """Bytes that the data socket has received, and answers on the links for keys and values."""
    sent_bytes: Count
    """Bytes that were sent to next stages, by the data socket, and as keys and values to other stages."""
    reconnects: Count
    """Connections to next stages that were made again after one had ended."""
    asked_us: Id = 0
    """``Ping.sent_us``. With the next two times and that of the arrival, it shows how the two clocks differ."""
    received_us: Id = 0
    """When the stage received the ``Ping``, by the stage's clock."""
    answered_us: Id = 0
    """When the stage answered, by the same clock."""


class Fault(NamedTuple):
    """Stage to coordinator: a step of ``sequence`` failed at stage number ``stage``, which has freed the sequence."""

    epoch: Id
    sequence: Id
    stage: Stage
    reason: Text


class FrameLost(NamedTuple):
    """Stage to coordinator: a frame of the epoch did not reach stage number ``stage`` from the stage before it.

    Sent by that stage, or by the one before it where it takes no frames any more.
    """

    epoch: Id
    stage: Stage


ControlMessage: TypeAlias = (
    Hello | Welcome | Attach | Attached | Unreached | Refused | Detach | Free | Void | Ping | Pong | Fault | FrameLost
)
