"""The whole protocol of edgepp, version 5.

A message is a ZeroMQ multipart message: one msgpack header, then, for ``Forward`` and ``Hidden``, the raw tensor frames
of the codec that the header names. The header is an array ``[version, kind, field, …]`` with the fields in the order in
which the classes below declare them. Nothing else is ever decoded: no pickle, no nested objects, no code. What is
decoded is valid, field by field and as a whole; ``speakers`` says who may say it.

A stage binds two ROUTER sockets; a coordinator binds none. Every connection is made by a DEALER.

    control   coordinator ──► stage     one DEALER a stage
        Hello        ► Welcome           who are you, what do you hold
        Attach       ► Attached|Refused  join the ring of my epoch: frames come from that key, go on to that address
        Ping         ► Pong              alive? (a stage forgets a coordinator that is silent for 10 s)
        Free, Detach                     no answer: cancel one sequence; forget the epoch and all of its sequences
                     ◄ Fault             a step failed; its sequence is freed

    data      coordinator ──► stage 0 ──► stage 1 ──► … ──► stage N-1 ──► coordinator
        Echo         ► Echo              reachable, and how far? (asked by whoever connects, on the same sockets)
        Forward      ► Forward           hidden states of T positions, before a stage's layers
                     ► Hidden            the last stage's answer, on the connection that the coordinator opened
        Batch        ► Batch             hidden states of one position each of several sequences that decode together;
                                         the last stage's answer is a Batch too

The data ring is one-way and in order; sequences are numbered by the coordinator and never reused within an epoch.
``Forward.position`` says where its first row belongs: a stage that holds more positions truncates to it first, one that
holds fewer answers with ``Fault``. Position 0 opens a sequence; so does a later one with a ``source``, whose first
positions are copied. A row of a ``Batch`` that cannot be run is taken out,
and the rest goes on. A frame of an epoch or sequence that a stage does not know, or of another sender than the
epoch's previous stage, is dropped and counted: after a cancel that is the normal course of things.

A coordinator that serves a cluster binds one ROUTER, by CURVE, for its members and their chats:

    cluster   node ──► coordinator      one DEALER a node
        Enrol        ► Enrolled|Refused  this is what I have; again whenever it or my address changes
        Heartbeat         ► HeartbeatAck            every half second; not known: enrol again
                     ◄ View              who belongs to the cluster and runs what, as JSON; whenever that changes
                     ◄ Load, Unload      run these layers in that slot; stop
        Loading, Loaded, NotLoaded       how a Load goes
        Leave        ◄ Expelled          going, also as the answer to Expelled; you are revoked, or the cluster ends
        Adopt        ► Enrolled|Refused  from the holder of a token: admit my own key

              chat ──► coordinator      one DEALER a chat or command
        Call         ► Reply             status, peers, leave; where the coordinator runs also invite, token, revoke
        Ask          ► Piece…, Answered  a conversation or raw text and its options; text as it comes; times and stages
                     ► Waiting           every second until the first piece, with the reason
                     ► Declined          in place of any of these: what is wrong, and what to do
        Cancel                           stop that answer

Call, Reply, Ask, Answered and View have one JSON frame behind the header, Piece one of text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

import msgpack

from edgepp.errors import LocalProtocolError, RemoteProtocolError
from edgepp.wire.header_layout import HeaderLayout, Rule
from edgepp.wire.text_fields import (
    are_addresses,
    are_hosts,
    is_key,
    is_key_or_empty,
    is_label,
    is_name,
    is_route,
    is_text,
)

VERSION = 5
MAX_HEADER_BYTES = 4096
CONTROL_FRAME_BYTES = 1 << 16
"""The longest frame that a control socket takes."""
PAYLOAD_BYTES = 4 << 20
"""The longest frame that a cluster socket takes: a conversation of some million characters."""
MAX_FRAMES = 4
"""Header and tensor frames of one message."""
MAX_TOKENS = 1024
"""Rows of one hidden-state tensor: no backend computes more than 512 at a time."""
MAX_WIDTH = 1 << 16
"""Columns of one hidden-state tensor: the hidden size D."""


def data_frame_bytes(width: int) -> int:
    """The longest frame that a data socket takes for hidden states of ``width`` values."""
    return MAX_TOKENS * width * 4


Id: TypeAlias = Annotated[int, 0, (1 << 63) - 1]
Count: TypeAlias = Annotated[int, 0, (1 << 48) - 1]
Rows: TypeAlias = Annotated[int, 0, MAX_TOKENS]
Width: TypeAlias = Annotated[int, 1, MAX_WIDTH]
Text: TypeAlias = Annotated[str, 0, 512, is_text]
"""A sentence; whoever shows it makes it printable."""
Label: TypeAlias = Annotated[str, 0, 512, is_label]
Name: TypeAlias = Annotated[str, 1, 128, is_name]
"""What people call a node or cluster."""
Key: TypeAlias = Annotated[str, 40, 40, is_key]
"""A node's public key in Z85."""
LinkKey: TypeAlias = Annotated[str, 0, 40, is_key_or_empty]
"""The key of the node at the other end of a link; empty where the link is not encrypted."""
Addresses: TypeAlias = Annotated[str, 0, 1024, are_addresses]
"""``HOST:PORT`` and ``[IPV6]:PORT``, separated by commas."""
Hosts: TypeAlias = Annotated[str, 0, 1024, are_hosts]
"""IP addresses, separated by commas."""
Route: TypeAlias = Annotated[str, 2, 510, is_route]
"""The route of a connection, in hexadecimal."""
Port: TypeAlias = Annotated[int, 1, 65535]
Layer: TypeAlias = Annotated[int, 0, 1 << 16]
Stage: TypeAlias = Annotated[int, 0, 1023]
Slot: TypeAlias = Annotated[int, 0, 63]
Verb: TypeAlias = Literal["status", "peers", "leave", "invite", "token", "revoke"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
Codec: TypeAlias = Literal["none", "lz4", "zstd", "int8"]
LinkCodec: TypeAlias = Literal["auto", "none", "lz4", "zstd", "int8"]
"""``auto`` lets the sender choose among the lossless ones, frame by frame."""
Ids: TypeAlias = Annotated[tuple[int, ...], 1, 128]
"""Sequences that decode together, or their positions."""
Micros: TypeAlias = Annotated[tuple[int, ...], 0, 1024]
"""Microseconds that each stage so far computed on the frame; codec and queue time are not in it."""


class Hello(NamedTuple):
    """Coordinator to stage: tell me what you are."""

    node: Label


class Welcome(NamedTuple):
    """A stage's answer to ``Hello``; enough to check a plan and to set deadlines."""

    node: Label
    pid: Count
    data_port: Port
    model: Label
    fingerprint: Label
    commit: Label
    """The hub commit that its weights are of; empty where unknown."""
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
    """Measured microseconds a token of a prefill chunk."""
    decode_us: Count
    """Measured microseconds of a decode step."""
    rewinds: bool
    """Whether its sequences can go back to any position, and begin as copies of others."""


class Attach(NamedTuple):
    """Join the ring ``epoch`` as stage ``stage``; send on to the next one, or to ``route`` when there is none.

    Frames of the epoch count only when their sender proved ``previous_key``: the previous stage's, or the
    coordinator's own before stage 0.
    ``next_addresses`` are where the next stage may be reached, separated by commas; the first to answer is taken.
    """

    epoch: Id
    stage: Stage
    next_addresses: Addresses
    next_key: LinkKey
    route: Route
    codec: LinkCodec
    return_bytes_per_s: Count
    """Bytes a second on the way back to the coordinator, as it measured them; 0 where this stage has a next one."""
    previous_key: LinkKey = ""


class Attached(NamedTuple):
    """The link to the next stage works; an echo of one hidden state took ``echo_us`` there and back."""

    epoch: Id
    echo_us: Count
    bytes_per_s: Count
    """Measured bytes a second one way; 0 without a next stage."""


class Refused(NamedTuple):
    """Why a ``Hello`` or ``Attach`` was not granted."""

    reason: Text


class Detach(NamedTuple):
    """Forget the epoch and free all of its sequences."""

    epoch: Id


class Free(NamedTuple):
    """Cancel a sequence and free its KV cache, whatever of it is still on the way."""

    epoch: Id
    sequence: Id


class Ping(NamedTuple):
    """Are you alive?"""

    epoch: Id


class Pong(NamedTuple):
    """Alive, and since when at the present step (0: idle); ``known`` is False once the epoch was forgotten."""

    epoch: Id
    known: bool
    busy_us: Count
    frames: Count
    dropped: Count
    sequences: Count
    kv_bytes: Count


class Fault(NamedTuple):
    """A step of ``sequence`` failed at stage ``stage``, or on the way to it; the sender has freed the sequence."""

    epoch: Id
    sequence: Id
    stage: Stage
    reason: Text


class Echo(NamedTuple):
    """Measures a data link: whoever binds sends it back as it came, with its one payload frame."""

    nonce: Id
    reply: bool


class Forward(NamedTuple):
    """Hidden states (rows, width) that belong at ``[position, position + rows)`` of a sequence.

    ``step`` is the coordinator's running number, which ``Hidden`` repeats. ``want`` is how many of the last rows the
    coordinator wants back: 1 to sample from, 0 for a chunk in mid-prompt, whose empty ``Hidden`` only acknowledges it.
    ``capacity`` is the most positions the sequence may reach. A stage that does not know the sequence begins it with
    the first ``position`` positions of the sequence ``source``; 0 is none.
    """

    epoch: Id
    sequence: Id
    step: Id
    position: Count
    capacity: Count
    source: Id
    want: Rows
    rows: Rows
    width: Width
    dtype: Dtype
    codec: Codec
    compute_us: Micros


class Hidden(NamedTuple):
    """The last ``rows`` hidden states of the coordinator's step number ``step``."""

    epoch: Id
    sequence: Id
    step: Id
    rows: Rows
    width: Width
    dtype: Dtype
    codec: Codec
    compute_us: Micros


class Enrol(NamedTuple):
    """A node tells the coordinator what it has. Its id follows from the key it proved."""

    incarnation: Id
    """Drawn at random when the node's process starts; tells a restart from a second node with the same key."""
    name: Name
    version: Label
    addresses: Hosts
    """IP addresses under which others may reach it, separated by commas."""
    memory: Count
    """Bytes that the model may use."""
    backend: Label
    device: Label
    threads: Annotated[int, 0, 1 << 16]
    stage_slots: Annotated[int, 0, 64]
    """Stage processes that it offers to run; memory and threads are for all together."""
    start: Layer
    stop: Layer
    """The range that its first stage slot is pinned to; both 0 without."""
    stream_bytes_per_s: Count
    """Measured bytes of weights a second in decode steps, with all threads."""
    flops: Count
    """Measured floating-point operations a second in a prompt."""


class Enrolled(NamedTuple):
    """The node is a member of ``cluster``, whose coordinator is called ``name``."""

    cluster: Label
    name: Name


class Heartbeat(NamedTuple):
    """The node lives."""

    incarnation: Id
    memory_free: Count
    clock_us: Id
    """The node's wall clock."""
    rtt_us: Count
    """How long the last answer to a beat took; 0 before the first."""


class HeartbeatAck(NamedTuple):
    """The coordinator lives; not ``known`` means enrol again."""

    known: bool
    clock_us: Id


class View(NamedTuple):
    """The cluster as the coordinator sees it; a JSON frame follows."""

    version: Id


class Load(NamedTuple):
    """Run layers ``[start, stop)`` of ``model`` in ``slot``, for plan ``plan``."""

    plan: Id
    slot: Slot
    model: Label
    """With ``@commit`` where it comes from a hub, so that all stages are of one revision."""
    start: Layer
    stop: Layer
    exact: bool
    kv_bits: Annotated[int, 0, 8]
    """Bits of a key or value in the KV cache; 0 for what the backend computes them in."""


class Unload(NamedTuple):
    """Plan ``plan`` has nothing for ``slot``."""

    plan: Id
    slot: Slot


class Loading(NamedTuple):
    """``done`` of ``total`` bytes are fetched or loaded."""

    plan: Id
    slot: Slot
    done: Count
    total: Count
    what: Label


class Loaded(NamedTuple):
    """The slot serves its range on ``port`` of the node, as stage process ``pid``."""

    plan: Id
    slot: Slot
    port: Port
    pid: Count
    backend: Label
    device: Label
    weight_bytes: Count
    resident_bytes: Count
    prefill_us: Count
    decode_us: Count


class NotLoaded(NamedTuple):
    """The slot could not load its range, or its stage process ended."""

    plan: Id
    slot: Slot
    reason: Text
    hint: Text


class Leave(NamedTuple):
    """The node goes, and takes its stages with it."""

    incarnation: Id


class Expelled(NamedTuple):
    """The node is a member no more: its key was revoked, or the cluster ends. The node answers ``Leave`` and ends."""

    reason: Text


class Adopt(NamedTuple):
    """The holder of a token asks that its own key be admitted."""

    name: Name
    key: Key


class Call(NamedTuple):
    """A question to the coordinator; a JSON frame with its arguments follows."""

    request: Id
    verb: Verb


class Reply(NamedTuple):
    """The answer to a ``Call``; a JSON frame follows."""

    request: Id


class Declined(NamedTuple):
    """A ``Call`` or ``Ask`` was not granted, or its answer cannot be finished."""

    request: Id
    reason: Text
    hint: Text


class Ask(NamedTuple):
    """A question to the model; a JSON frame follows."""

    request: Id


class Cancel(NamedTuple):
    """Stop an answer."""

    request: Id


class Waiting(NamedTuple):
    """The answer has not begun, and why."""

    request: Id
    reason: Text


class Piece(NamedTuple):
    """Tokens of an answer; a frame with the text that they completed follows."""

    request: Id
    tokens: Annotated[tuple[int, ...], 0, 256]


class Answered(NamedTuple):
    """The answer is whole; a JSON frame with its times and stages follows."""

    request: Id


class Batch(NamedTuple):
    """Hidden states (B, width), row i for position ``positions[i]`` of ``sequences[i]``; what comes through returns."""

    epoch: Id
    step: Id
    sequences: Ids
    positions: Ids
    width: Width
    dtype: Dtype
    codec: Codec
    compute_us: Micros

    @property
    def rows(self) -> int:
        """B."""
        return len(self.sequences)


Message: TypeAlias = (
    Hello
    | Welcome
    | Attach
    | Attached
    | Refused
    | Detach
    | Free
    | Ping
    | Pong
    | Fault
    | Echo
    | Forward
    | Hidden
    | Batch
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
    | Leave
    | Expelled
    | Adopt
    | Call
    | Reply
    | Declined
    | Ask
    | Cancel
    | Waiting
    | Piece
    | Answered
)


def _welcome(m: Welcome) -> str:
    return "" if m.start < m.stop <= m.num_layers else "has a range that is none"


def _attach(m: Attach) -> str:
    return "" if m.next_addresses or not m.next_key else "has the key of a next stage without its addresses"


def _forward(m: Forward) -> str:
    return "" if 0 < m.rows >= m.want else f"wants {m.want} rows of {m.rows}"


def _batch(m: Batch) -> str:
    matched = len(m.positions) == len(m.sequences) == len(set(m.sequences))
    return "" if matched else "has sequences and positions that do not match"


def _enrol(m: Enrol) -> str:
    return "" if m.start < m.stop or m.start == m.stop == 0 else "has a range that is none"


def _load(m: Load) -> str:
    return "" if m.start < m.stop else "has a range that is none"


_RULES: Mapping[type, Rule] = {
    Welcome: _welcome,
    Attach: _attach,
    Forward: _forward,
    Batch: _batch,
    Enrol: _enrol,
    Load: _load,
}
_NAMES: dict[type, str] = {kind: kind.__name__.lower() for kind in get_args(Message)}
_LAYOUTS: dict[str, HeaderLayout] = {name: HeaderLayout.of(kind, _RULES.get(kind)) for kind, name in _NAMES.items()}


def encode_payload(value: Mapping[str, Any]) -> bytes:
    """A JSON frame.

    Raises:
        LocalProtocolError: it is too long.
    """
    raw = json.dumps(value, ensure_ascii=False).encode()
    if len(raw) > PAYLOAD_BYTES:
        raise LocalProtocolError(f"a payload of {len(raw)} bytes is longer than {PAYLOAD_BYTES}")
    return raw


def decode_payload(frames: Sequence[bytes | memoryview]) -> dict[str, Any]:
    """The object in the one JSON frame behind a header; what it holds is still to be checked.

    Raises:
        RemoteProtocolError: there is no such frame, or it holds no JSON object.
    """
    if len(frames) != 2:
        raise RemoteProtocolError("a message without its one payload frame")
    try:
        value = json.loads(bytes(frames[1]))
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"a payload is not JSON: {error}") from error
    if type(value) is not dict:
        raise RemoteProtocolError("a payload is not a JSON object")
    return value


def encode(message: Message) -> bytes:
    """The header frame of a message; whether it means anything is for whoever reads it to judge.

    Raises:
        LocalProtocolError: it does not fit into a header.
    """
    try:
        raw: bytes = msgpack.packb((VERSION, _NAMES[type(message)], *message))
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"a {type(message).__name__} header cannot be made: {error}") from error
    if len(raw) > MAX_HEADER_BYTES:
        raise LocalProtocolError(f"a {type(message).__name__} header of {len(raw)} bytes is too long")
    return raw


def decode(raw: bytes | memoryview) -> Message:
    """Read a header frame, trusting nothing in it.

    Raises:
        RemoteProtocolError: it is too long, not msgpack, of another version, of an unknown kind, or not valid.
    """
    if len(raw) > MAX_HEADER_BYTES:
        raise RemoteProtocolError(f"a header of {len(raw)} bytes is longer than {MAX_HEADER_BYTES}")
    try:
        value = msgpack.unpackb(raw, use_list=False, max_map_len=0, max_ext_len=0, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise RemoteProtocolError(f"a header is not msgpack: {error}") from error
    if type(value) is not tuple or len(value) < 2:
        raise RemoteProtocolError("a header is not an array")
    version, kind, *values = value
    if version != VERSION:
        raise RemoteProtocolError(f"the other side speaks protocol version {version!a:.40}, this one {VERSION}")
    layout = _LAYOUTS.get(kind) if type(kind) is str else None
    if layout is None:
        raise RemoteProtocolError(f"a message of unknown kind {kind!a:.40}")
    if not layout.accepts(values):
        raise RemoteProtocolError(f"the {kind} message {layout.fault(values)}")
    message: Message = layout.kind(*values)
    if layout.rule is not None and (fault := layout.rule(message)):
        raise RemoteProtocolError(f"the {kind} message {fault}")
    return message
