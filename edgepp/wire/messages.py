"""The protocol of edgepp, version 7: every message, its sender and its receiver.

A message is a ZeroMQ multipart message. The first frame is a msgpack header ``[version, kind, field, …]``, with the
fields in the order in which the classes of this module declare them; the annotations of the fields (``field_types``)
bound their values. ``message_codec`` encodes and decodes headers, and rejects whatever a class does not declare. No
pickle, nested object or code is ever decoded. ``permissions`` says which role may send a message on which socket.

Frames after the header: ``Forward``, ``Hidden`` and ``Batch`` carry the tensor frames of their codec, ``KvPiece`` one
frame of keys and values, ``Echo`` one frame of arbitrary bytes, ``View``, ``Call``, ``Reply``, ``Ask`` and ``Answered``
one frame of JSON, ``Piece`` one frame of UTF-8 text. All other messages have no further frame.

A stage binds two ROUTER sockets. Whoever sends to a stage connects to it with a DEALER socket.

    control   coordinator ──► stage     one DEALER per stage
        Hello        ► Welcome           identity of the stage: model, layer range, shapes, speed
        Attach       ► Attached|Refused  join the ring of an epoch: the previous stage's key, the next stage's address
                     ◄ Held…             before Attached: what the stage holds of the epoch that the ring replaces
        Ping         ► Pong              liveness; a stage forgets a coordinator that is silent for 10 s
        Free, Detach                     cancel one sequence; forget an epoch with all of its sequences (no reply)
                     ◄ Fault             a step failed and its sequence is freed
                     ◄ FrameLost         a frame of the previous stage did not arrive
        Inventory    ► Held…             what the stage holds of the epoch
        Replay       ► Rebuilt|Fault     send hidden states of a sequence again, for stages that have lost the sequence
        Expect       ► Rebuilt|Fault     accept the keys and values of a sequence from another stage
        Push         ► Fault             send keys and values of a sequence to another stage (no reply where that works)

    data      coordinator ──► stage 0 ──► stage 1 ──► … ──► stage N-1 ──► coordinator
        Echo         ► Echo              round-trip time and rate of a link, measured by the side that connected
        Forward      ► Forward           hidden states of T positions of one sequence, from stage to stage
                     ► Hidden            result of a Forward, from the last stage over the coordinator's connection
        Batch        ► Batch             hidden states of one position each of several sequences, from stage to stage;
                                         the last stage returns a Batch to the coordinator
        KvPiece                          keys and values of a sequence, from any stage of the ring to any other

The data ring is one-way and in order. The coordinator numbers the sequences and never reuses a number within an epoch.
``Forward.position`` is the position of the first row: a stage that holds more positions truncates the sequence to that
position first; a stage that holds fewer positions replies with ``Fault``. A ``Forward`` with position 0, or with a
``source`` sequence to copy from, opens a sequence. A stage removes a row of a ``Batch`` that cannot be computed and
runs the other rows. A stage drops and counts a frame of an unknown epoch or sequence, or from another sender than the
previous stage of the epoch; after a cancelled sequence such frames are normal.

Each sender numbers the frames ``Forward``, ``Batch`` and ``Hidden`` of an epoch on its link from 0 (``serial``). A
stage that sees a gap sends ``FrameLost`` and computes the frame; it drops and counts a frame whose number is not new.

A ring can replace another one that has lost a stage. Its new epoch ``inherits`` the old one: a stage that was part of
both keeps its sequences, its log and its copies, and reports them with ``Held``. Each stage but the last logs the
hidden states that it sent on. ``Replay`` sends the log again, up to the stage ``until``, which does not send its result
on and answers ``Rebuilt``. Keys and values themselves go by ``KvPiece``: to the stage that keeps copies for the sender,
or, after ``Expect`` and ``Push``, to the stage that restores a sequence.

The coordinator of a cluster binds one ROUTER socket, encrypted by CURVE, for nodes and clients.

    cluster   node ──► coordinator      one DEALER per node
        Enrol        ► Enrolled|Refused  name and resources; sent again when the resources or addresses change
        Heartbeat    ► HeartbeatAck      twice per second; the acknowledgement of an unknown node makes it enrol again
                     ◄ View              state of the cluster, sent when it changes
                     ◄ Load, Unload      run a layer range in a stage slot; empty a stage slot
        Loading, Loaded, NotLoaded       progress and result of a Load; NotLoaded also when a stage process ended
                     ◄ Restart, Retire   end a stage process that hangs, and start the stage again; end the stage
                                         process that stayed when its slot got another layer range
                     ◄ Warm              fetch layers that the node may run later, and read them once
        Leaving      ► Drained           move the node's layers to the others, before Leave
        Leave        ◄ Expelled          the node leaves, also as reply to Expelled; key revoked, or the cluster ends
        Adopt        ► Enrolled|Refused  the holder of a token asks the coordinator to admit the holder's own key

              client ──► coordinator    one DEALER per chat or command
        Call         ► Reply             status, peers, leave; on the coordinator's machine: invite, token, revoke,
                                         use, drain
        Ask          ► Piece…, Answered  a prompt: text as it is generated, then times and stages
                     ► Waiting           every second until the first Piece, with the reason
                     ► Declined          in place of any of these replies: the reason and what to do
        Cancel                           stop an answer (no reply)
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from edgepp.wire.field_types import (
    MAX_TOKENS,
    Addresses,
    Checksum,
    Codec,
    Count,
    Dtype,
    HeldKind,
    Hosts,
    Id,
    Key,
    KvBits,
    KvSource,
    Label,
    Layer,
    LinkCodec,
    LinkKey,
    Name,
    PerSequence,
    PerStageMicroseconds,
    PiecePurpose,
    Port,
    Route,
    Rows,
    Slot,
    Stage,
    StageSlots,
    Text,
    Threads,
    TokenIds,
    Verb,
    Width,
)

VERSION = 7
MAX_FRAMES = 4
"""Frames of one message, header included."""
MAX_HEADER_BYTES = 4096
MAX_CONTROL_FRAME_BYTES = 1 << 16
"""Longest frame on a control socket."""
MAX_PAYLOAD_BYTES = 4 << 20
"""Longest frame on a cluster socket: a conversation of some million characters."""
REPLAYED = (1 << 63) - 1
"""``Forward.step`` of a frame that a ``Replay`` made: no step of the coordinator waits for the result."""


def max_data_frame_bytes(width: int) -> int:
    """Longest frame, in bytes, on a data socket for hidden states of ``width`` values."""
    return MAX_TOKENS * width * 4


# Control socket of a stage


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


class Held(NamedTuple):
    """Stage to coordinator, before ``Attached`` or in reply to ``Inventory``: what the stage holds of the epoch.

    ``positions[i]`` positions from 0 on of ``sequences[i]``: keys and values of the layers ``[start, stop)``, hidden
    states that the stage has logged, or copies of the layers ``[start, stop)`` that it keeps for another stage. Several
    messages where there are more sequences than fit into one.
    """

    epoch: Id
    """Of ``Attached``, the new epoch."""
    what: HeldKind
    start: Layer
    stop: Layer
    sequences: PerSequence
    positions: PerSequence

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        if self.start >= self.stop:
            return "has an empty layer range"
        matched = len(self.positions) == len(self.sequences) == len(set(self.sequences))
        return "" if matched else "has sequences and positions that do not match"


class Inventory(NamedTuple):
    """Coordinator to stage: tell by ``Held`` what the stage holds of the epoch; no reply where it holds nothing."""

    epoch: Id


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


class Ping(NamedTuple):
    """Coordinator to stage: asks for a ``Pong``, and keeps the epoch alive."""

    epoch: Id


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
    sequences: Count
    """Open sequences."""
    kv_bytes: Count
    """Bytes of their keys and values, of their log, and of the copies for another stage."""
    received_bytes: Count
    """Bytes that the data socket has received."""
    sent_bytes: Count
    """Bytes that were sent to next stages, and by the data socket."""
    reconnects: Count
    """Connections to next stages that were made again after one had ended."""


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


class Replay(NamedTuple):
    """Coordinator to stage: send the logged hidden states of positions ``[start, stop)`` to the next stage again.

    The last stage that computes them is number ``until``, which replies with ``Rebuilt`` for each frame.
    """

    epoch: Id
    sequence: Id
    capacity: Count
    """``Forward.capacity`` of the frames."""
    start: Count
    stop: Count
    until: Stage

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        return "" if self.start < self.stop <= self.capacity else "has an impossible range of positions"


class Expect(NamedTuple):
    """Coordinator to stage: accept the keys and values of a sequence from the stage with the key ``key``.

    ``Rebuilt`` follows when all layers of the stage have arrived up to position ``length``. A second ``Expect`` of the
    same sequence and length admits a second sender.
    """

    epoch: Id
    sequence: Id
    capacity: Count
    length: Count
    key: LinkKey

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        return "" if 0 < self.length <= self.capacity else "has an impossible length"


class Rebuilt(NamedTuple):
    """Stage to coordinator: the keys and values of the sequence hold ``length`` positions again.

    Sent for every frame that ends at a stage before the last or was made by a ``Replay``, and when a sequence of an
    ``Expect`` is complete.
    """

    epoch: Id
    sequence: Id
    length: Count


class Push(NamedTuple):
    """Coordinator to stage: send keys and values of a sequence to the data socket of another stage.

    Those of the layers ``[start_layer, stop_layer)`` and at least of the positions ``[start, stop)``, from the stage's
    own caches or from the copies that it keeps.
    """

    epoch: Id
    sequence: Id
    what: KvSource
    start_layer: Layer
    stop_layer: Layer
    start: Count
    stop: Count
    addresses: Addresses
    """Addresses of the other stage's data socket, of which the first to answer is used."""
    key: LinkKey
    to_epoch: Id
    """Epoch by which the other stage knows the sequence."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        if self.start_layer >= self.stop_layer or self.start >= self.stop:
            return "has an empty range of layers or positions"
        return "" if self.addresses else "has no address to send to"


# Data socket of a stage


class Echo(NamedTuple):
    """Coordinator or stage to the next stage, which returns the frames at once with ``reply`` set: measures a link."""

    nonce: Id
    reply: bool


class Forward(NamedTuple):
    """Coordinator to stage 0, and stage to next stage: hidden states (rows, width) of one sequence.

    The rows are for positions ``[position, position + rows)``.
    """

    epoch: Id
    sequence: Id
    step: Id
    """Running number of the coordinator's steps, repeated by ``Hidden``."""
    position: Count
    capacity: Count
    """Highest number of positions that the sequence may reach."""
    source: Id
    """For a sequence that the stage does not know: the sequence of which the first ``position`` positions are copied; 0
    for none."""
    wanted_rows: Rows
    """Number of last rows that the coordinator wants returned: 1 to sample from, 0 for a chunk in mid-prompt, which an
    empty ``Hidden`` acknowledges."""
    rows: Rows
    width: Width
    dtype: Dtype
    codec: Codec
    compute_us: PerStageMicroseconds
    until: Stage = 0
    """Number of the last stage that computes the frame; in normal frames the last stage of the ring."""
    serial: Id = 0
    """Number of the frame on its link within the epoch."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        return "" if 0 < self.rows >= self.wanted_rows else f"wants {self.wanted_rows} rows of {self.rows}"


class Hidden(NamedTuple):
    """Last stage to coordinator: the last ``rows`` hidden states (rows, width) of the ``Forward`` numbered ``step``."""

    epoch: Id
    sequence: Id
    step: Id
    rows: Rows
    width: Width
    dtype: Dtype
    codec: Codec
    compute_us: PerStageMicroseconds
    serial: Id = 0
    """Number of the frame on its link within the epoch."""


class Batch(NamedTuple):
    """Coordinator to stage 0, stage to next stage, and last stage to coordinator: a decode step of B sequences.

    Hidden states (B, width); row i is for position ``positions[i]`` of ``sequences[i]``.
    """

    epoch: Id
    step: Id
    sequences: PerSequence
    positions: PerSequence
    width: Width
    dtype: Dtype
    codec: Codec
    compute_us: PerStageMicroseconds
    serial: Id = 0
    """Number of the frame on its link within the epoch."""

    @property
    def rows(self) -> int:
        """Number of sequences, B."""
        return len(self.sequences)

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        matched = len(self.positions) == len(self.sequences) == len(set(self.sequences))
        return "" if matched else "has sequences and positions that do not match"


class KvPiece(NamedTuple):
    """Stage to stage: keys and values of the layers ``[start_layer, stop_layer)`` and positions ``[start, stop)``.

    One frame of raw bytes in the form ``layout``: layer by layer, for each layer keys then values.
    """

    epoch: Id
    sequence: Id
    purpose: PiecePurpose
    """``copy``: to keep for the sender; ``restore``: to compute with, as ``Expect`` announced."""
    start_layer: Layer
    stop_layer: Layer
    start: Count
    stop: Count
    layout: Label
    """Form of the bytes (``StageModel.kv_layout``)."""
    checksum: Checksum
    """CRC-32 of the bytes."""
    step: Id = 0
    """1 + ``step`` of the latest frame of the sequence when a copy was taken; 0 for none, and to restore."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        filled = self.start_layer < self.stop_layer and self.start < self.stop
        return "" if filled else "has an empty range of layers or positions"


# Cluster socket of the coordinator: nodes


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


class HeartbeatAck(NamedTuple):
    """Coordinator to node, in reply to ``Heartbeat``: the coordinator is alive."""

    known: bool
    """False for a node that has to enrol again."""
    clock_us: Id
    """Wall clock of the coordinator, in microseconds since 1970."""


class View(NamedTuple):
    """Coordinator to every node: the state of the cluster, in the JSON frame."""

    version: Id


class Load(NamedTuple):
    """Coordinator to node: run layers ``[start, stop)`` of ``model`` in the stage slot ``slot``; see ``Retire``."""

    plan_id: Id
    slot: Slot
    model: Label
    """With ``@commit`` for a model of a hub, so that all stages have the same revision."""
    start: Layer
    stop: Layer
    exact: bool
    kv_bits: KvBits
    """Bits per value of the KV cache; 0 for the dtype of the backend."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
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
    """Node to coordinator: the stage process ``pid`` in ``slot`` runs its range; its control socket is on ``port``."""

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


# Cluster socket of the coordinator: clients. ``request_id`` is the client's number of the question.


class Call(NamedTuple):
    """Client to coordinator: run the command ``verb`` with the arguments in the JSON frame."""

    request_id: Id
    verb: Verb


class Reply(NamedTuple):
    """Coordinator to client: result of a ``Call``, in the JSON frame."""

    request_id: Id


class Declined(NamedTuple):
    """Coordinator to client: a ``Call`` or ``Ask`` is refused, or its answer cannot be finished."""

    request_id: Id
    reason: Text
    hint: Text


class Ask(NamedTuple):
    """Client to coordinator: generate an answer to the conversation, text or token ids in the JSON frame."""

    request_id: Id


class Cancel(NamedTuple):
    """Client to coordinator: stop generating an answer."""

    request_id: Id


class Waiting(NamedTuple):
    """Coordinator to client: why the answer has not begun."""

    request_id: Id
    reason: Text


class Piece(NamedTuple):
    """Coordinator to client: the next tokens of an answer, and in the text frame the text that they complete."""

    request_id: Id
    tokens: TokenIds


class Answered(NamedTuple):
    """Coordinator to client: the answer is complete; its times and stages are in the JSON frame."""

    request_id: Id


ClientMessage: TypeAlias = Call | Reply | Declined | Ask | Cancel | Waiting | Piece | Answered

Message: TypeAlias = (
    Hello
    | Welcome
    | Attach
    | Attached
    | Held
    | Refused
    | Detach
    | Free
    | Ping
    | Pong
    | Fault
    | FrameLost
    | Inventory
    | Replay
    | Expect
    | Rebuilt
    | Push
    | Echo
    | Forward
    | Hidden
    | Batch
    | KvPiece
    | Enrol
    | Enrolled
    | Heartbeat
    | HeartbeatAck
    | View
    | Load
    | Unload
    | Loading
    | Loaded
    | NotLoaded
    | Restart
    | Retire
    | Warm
    | Leaving
    | Drained
    | Leave
    | Expelled
    | Adopt
    | ClientMessage
)


def request_id_of(message: Message) -> int | None:
    """The client's number of the question or call that ``message`` belongs to; None for other messages."""
    return message.request_id if isinstance(message, ClientMessage) else None
