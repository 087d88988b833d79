"""Messages between nodes and the coordinator, on its cluster socket: membership, and the layers that a node runs.

A refused ``Enrol`` or ``Adopt`` is answered by ``Refused``, which stages send too (``messages.control``).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from edgepp.host_system.sleep_inhibitor import SleepLock
from edgepp.wire.field_types import (
    Count,
    Hosts,
    Id,
    Key,
    KvBits,
    Label,
    Layer,
    Name,
    Port,
    Rank,
    RankPids,
    Ranks,
    RankWeights,
    Slot,
    StageSlots,
    Text,
    Threads,
)
from edgepp.wire.messages.rank_meetings import RankMeetingMessage


class Enrol(NamedTuple):
    """Node to coordinator: name and resources of the node. The key that the connection proved gives the node's id."""

    incarnation: Id
    """Drawn at random when the process of the node starts; distinguishes a restart from a second node with the same
    key."""
    name: Name
    version: Label
    addresses: Hosts
    """IP addresses of the node for other nodes."""
    memory_bytes: Count
    """Memory for the model."""
    backend: Label
    device: Label
    threads: Threads
    stage_slots: StageSlots
    """Stage processes that the node offers to run; they share ``memory_bytes`` and ``threads``."""
    start: Layer
    stop: Layer
    """Layer range to which the first stage slot is pinned; ``start`` and ``stop`` are 0 for none."""
    stream_bytes_per_s: Count
    """Measured rate at which decode steps read weights, with all threads."""
    flops_per_s: Count
    """Measured floating-point operations per second of a prefill, with all threads."""
    draft: Label = ""
    """Small model that the node guesses with in its first stage slot, in place of running layers; empty for none."""
    tensor: Ranks = 1
    """Machines, this one included, that are to share each layer of a stage, in their first slots; 1 for none."""
    half_ns: Count = 0
    """Measured nanoseconds that half of a layer takes a rank beyond its part of the whole layer's time."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        return "" if self.start < self.stop or self.start == self.stop == 0 else "has an empty layer range"


class Enrolled(NamedTuple):
    """Coordinator to node, in reply to ``Enrol`` or ``Adopt``: the node is a member of ``cluster``."""

    cluster: Label
    name: Name
    """Name of the coordinator's node."""


class Heartbeat(NamedTuple):
    """Node to coordinator, every half second: the node is alive."""

    incarnation: Id
    free_memory_bytes: Count
    clock_us: Id
    """Wall clock of the node, in microseconds since 1970."""
    rtt_us: Count
    """Round-trip time of the last acknowledged heartbeat; 0 before the first."""
    sleep_lock: SleepLock = "released"
    """Whether the machine is kept from sleeping."""


class HeartbeatAck(NamedTuple):
    """Coordinator to node, in reply to ``Heartbeat``: the coordinator is alive."""

    known: bool
    """False for a node that has to enrol again."""
    clock_us: Id
    """Wall clock of the coordinator, in microseconds since 1970."""
    working: bool = False
    """Whether answers are under way, so that the machines that compute them must not sleep."""


class View(NamedTuple):
    """Coordinator to every node: the state of the cluster, in the JSON frame."""

    version: Id


class Load(NamedTuple):
    """Coordinator to node: run layers ``[start, stop)`` of ``model`` in the stage slot ``slot``; see ``Retire``.

    With ``drafts``, run a process that guesses with the whole model; ``start`` and ``stop`` are 0 then. With a
    ``group``, run one rank of a stage whose other ranks run on other nodes; see ``RankListens``.
    """

    plan_id: Id
    slot: Slot
    model: Label
    """With ``@commit`` for a model of a hub, so that all stages have the same revision."""
    start: Layer
    stop: Layer
    exact: bool
    kv_bits: KvBits
    """Bits per value of the KV cache; 0 for the dtype of the backend."""
    drafts: bool = False
    group: Id = 0
    """Id of the ranks of the stage; 0 for a stage of one process."""
    rank: Rank = 0
    weights: RankWeights = ()
    head: bool = False
    """Whether the ranks of the group share the output head too: each fetches final norm and head."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        if bool(self.group) != (self.rank < len(self.weights)) or (self.group and not all(self.weights)):
            return "has a rank that does not fit its group"
        if self.head and not self.group:
            return "shares the output head, and has no group"
        if self.drafts:
            return "drafts, and has a layer range" if self.start or self.stop else ""
        return "" if self.start < self.stop else "has an empty layer range"


class Unload(NamedTuple):
    """Coordinator to node: end the stage process in ``slot``, for which the plan has no layers."""

    plan_id: Id
    slot: Slot


class Loading(NamedTuple):
    """Node to coordinator: progress of a ``Load``."""

    plan_id: Id
    slot: Slot
    done_bytes: Count
    total_bytes: Count
    activity: Label
    """``fetching`` or ``loading``."""


class Loaded(NamedTuple):
    """Node to coordinator: the process ``pid`` in ``slot`` does what ``Load`` ordered.

    Its control socket, or draft socket, is on ``port``.
    """

    plan_id: Id
    slot: Slot
    port: Port
    pid: Count
    backend: Label
    device: Label
    weight_bytes: Count
    resident_bytes: Count
    prefill_us: Count
    """Measured microseconds per token of a prefill chunk."""
    decode_us: Count
    """Measured microseconds of a decode step."""
    rank_pids: RankPids = ()
    """The ranks of the stage, where several processes of the node share its layers; ``pid`` is rank 0."""
    rank_weights: RankWeights = ()

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        return "" if len(self.rank_pids) == len(self.rank_weights) else "has another number of ranks than of weights"


class NotLoaded(NamedTuple):
    """Node to coordinator: the stage process in ``slot`` could not load its range, or has ended."""

    plan_id: Id
    slot: Slot
    reason: Text
    hint: Text
    restarting: bool = False
    """Whether the node starts the same stage again by itself: another ``Loaded`` or ``NotLoaded`` follows."""


class Restart(NamedTuple):
    """Coordinator to node: the stage process ``pid`` in ``slot`` hangs. The node ends it and starts the stage again.

    The node ignores the message when the slot's stage process is another one by now.
    """

    plan_id: Id
    slot: Slot
    pid: Count


class Retire(NamedTuple):
    """Coordinator to node: end the stage process that stayed in ``slot`` beside its successor; ``plan_id`` is its own.

    A stage process stays when a ``Load`` changes only the layer range of its slot and the memory suffices for both, so
    that its sequences can move. It ends after two minutes without this message.
    """

    plan_id: Id
    slot: Slot


class Warm(NamedTuple):
    """Coordinator to node: fetch layers ``[start, stop)`` of ``model``, which the node may run later.

    Where the free memory allows, the node also reads them once, into the page cache. A load of the node comes first,
    and a later ``Warm`` takes the place of this one. No reply.
    """

    plan_id: Id
    model: Label
    start: Layer
    stop: Layer

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        return "" if self.start < self.stop else "has an empty layer range"


class Leaving(NamedTuple):
    """Node to coordinator: the node is about to end; it runs its stages until ``Drained``, for 20 s at most.

    The node sends the message again until the reply.
    """

    incarnation: Id


class Drained(NamedTuple):
    """Coordinator to node, in reply to ``Leaving``: the other nodes have the node's layers, or cannot take them."""

    incarnation: Id


class Leave(NamedTuple):
    """Node to coordinator: the node ends, with all of its stage processes."""

    incarnation: Id


class Expelled(NamedTuple):
    """Coordinator to node: the key was revoked, or the cluster ends. The node replies with ``Leave`` and ends."""

    reason: Text


class Adopt(NamedTuple):
    """Holder of a token to coordinator: admit ``key``, the holder's own, under ``name``."""

    name: Name
    key: Key


NodeMessage: TypeAlias = (
    Enrol
    | Enrolled
    | Heartbeat
    | HeartbeatAck
    | View
    | Load
    | Unload
    | Loading
    | Loaded
    | RankMeetingMessage
    | NotLoaded
    | Restart
    | Retire
    | Warm
    | Leaving
    | Drained
    | Leave
    | Expelled
    | Adopt
)
