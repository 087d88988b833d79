"""The whole protocol of edgepp, version 1.

A message is a ZeroMQ multipart message: one msgpack header, then, for ``Forward`` and ``Hidden``, the raw tensor frames
of the codec that the header names. The header is an array ``[version, kind, field, …]`` with the fields in the order in
which the classes below declare them. Nothing else is ever decoded: no pickle, no nested objects, no code.

A stage binds two ROUTER sockets; a coordinator binds none. Every connection is made by a DEALER.

    control   coordinator ──► stage     one DEALER a stage
        Hello        ► Welcome           who are you, what do you hold
        Attach       ► Attached|Refused  join the ring of my epoch, send on to that address
        Ping         ► Pong              alive? (a stage forgets a coordinator that is silent for 10 s)
        Free, Detach                     no answer: cancel one sequence; forget the epoch and all of its sequences
                     ◄ Fault             a step failed; its sequence is freed

    data      coordinator ──► stage 0 ──► stage 1 ──► … ──► stage N-1 ──► coordinator
        Echo         ► Echo              reachable, and how far? (asked by whoever connects, on the same sockets)
        Forward      ► Forward           hidden states of T positions, before a stage's layers
                     ► Hidden            the last stage's answer, on the connection that the coordinator opened

The data ring is one-way and in order; sequences are numbered by the coordinator and never reused within an epoch.
``Forward.position`` says where its first row belongs: a stage that holds more positions truncates to it first, one that
holds fewer answers with ``Fault``. Position 0 opens a sequence. A frame of an epoch or sequence that a stage does not
know is dropped and counted: after a cancel that is the normal course of things.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgpack

from edgepp.errors import LocalProtocolError, RemoteProtocolError

VERSION = 1
MAX_HEADER_BYTES = 4096
MAX_FRAMES = 4
"""Header and tensor frames of one message."""
MAX_TOKENS = 4096
"""Rows of one hidden-state tensor."""
MAX_WIDTH = 1 << 16
"""Columns of one hidden-state tensor: the hidden size D."""

Id: TypeAlias = Annotated[int, 0, (1 << 63) - 1]
Count: TypeAlias = Annotated[int, 0, (1 << 48) - 1]
Rows: TypeAlias = Annotated[int, 0, MAX_TOKENS]
Width: TypeAlias = Annotated[int, 1, MAX_WIDTH]
Text: TypeAlias = Annotated[str, 0, 512]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
Codec: TypeAlias = Literal["none", "lz4", "zstd", "int8"]
Micros: TypeAlias = Annotated[tuple[int, ...], 0, 1024]
"""Microseconds that each stage so far computed on the frame; codec and queue time are not in it."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Coordinator to stage: tell me what you are."""

    node: Text


@dataclass(frozen=True, slots=True)
class Welcome:
    """A stage's answer to ``Hello``; enough to check a plan and to set deadlines."""

    node: Text
    pid: Count
    data_port: Count
    model: Text
    fingerprint: Text
    commit: Text
    """The hub commit that its weights are of; empty where unknown."""
    start: Count
    stop: Count
    num_layers: Count
    hidden_size: Width
    context: Count
    backend: Text
    device: Text
    dtype: Dtype
    exact: bool
    chunk: Rows
    weight_bytes: Count
    prefill_us: Count
    """Measured microseconds a token of a prefill chunk."""
    decode_us: Count
    """Measured microseconds of a decode step."""


@dataclass(frozen=True, slots=True)
class Attach:
    """Join the ring ``epoch`` as stage ``stage``; send on to ``next_address``, or to ``route`` when it is empty."""

    epoch: Id
    stage: Count
    next_address: Text
    route: Text
    codec: Codec


@dataclass(frozen=True, slots=True)
class Attached:
    """The link to the next stage works; an echo of one hidden state took ``echo_us`` there and back."""

    epoch: Id
    echo_us: Count


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a ``Hello`` or ``Attach`` was not granted."""

    reason: Text


@dataclass(frozen=True, slots=True)
class Detach:
    """Forget the epoch and free all of its sequences."""

    epoch: Id


@dataclass(frozen=True, slots=True)
class Free:
    """Cancel a sequence and free its slot, whatever of it is still on the way."""

    epoch: Id
    sequence: Id


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you alive?"""

    epoch: Id


@dataclass(frozen=True, slots=True)
class Pong:
    """Alive, and since when at the present step (0: idle); ``known`` is False once the epoch was forgotten."""

    epoch: Id
    known: bool
    busy_us: Count
    frames: Count
    dropped: Count
    sequences: Count
    kv_bytes: Count


@dataclass(frozen=True, slots=True)
class Fault:
    """A step of ``sequence`` failed at stage ``stage``; the stage has freed the sequence."""

    epoch: Id
    sequence: Id
    stage: Count
    reason: Text


@dataclass(frozen=True, slots=True)
class Echo:
    """Measures a data link: whoever binds sends it back as it came, with its one payload frame."""

    nonce: Id
    reply: bool


@dataclass(frozen=True, slots=True)
class Forward:
    """Hidden states (rows, width) that belong at ``[position, position + rows)`` of a sequence.

    ``step`` is the coordinator's running number, which ``Hidden`` repeats. ``want`` is how many of the last rows the
    coordinator wants back: 1 to sample from, 0 for a chunk in mid-prompt, whose empty ``Hidden`` only acknowledges it.
    ``capacity`` is the most positions the sequence may reach.
    """

    epoch: Id
    sequence: Id
    step: Id
    position: Count
    capacity: Count
    want: Rows
    rows: Rows
    width: Width
    dtype: Dtype
    codec: Codec
    compute_us: Micros


@dataclass(frozen=True, slots=True)
class Hidden:
    """The last ``rows`` hidden states of a step that took its sequence up to position ``end``."""

    epoch: Id
    sequence: Id
    step: Id
    end: Count
    rows: Rows
    width: Width
    dtype: Dtype
    codec: Codec
    compute_us: Micros


Message: TypeAlias = (
    Hello | Welcome | Attach | Attached | Refused | Detach | Free | Ping | Pong | Fault | Echo | Forward | Hidden
)

_Check = Callable[[Any], bool]


def _check_of(hint: Any) -> _Check:
    """The test that a field's annotation asks of a decoded value."""
    if hint is bool:
        return lambda v: type(v) is bool
    if get_origin(hint) is Literal:
        allowed = frozenset(get_args(hint))
        return lambda v: type(v) is str and v in allowed
    kind, low, high = get_args(hint)
    if kind is str:
        return lambda v: type(v) is str and low <= len(v) <= high
    if kind is int:
        return lambda v: type(v) is int and low <= v <= high
    return lambda v: type(v) is list and low <= len(v) <= high and all(type(n) is int and n >= 0 for n in v)


_KINDS: dict[str, type[Message]] = {kind.__name__.lower(): kind for kind in get_args(Message)}
_LAYOUTS = {kind: (name, tuple(field.name for field in fields(kind))) for name, kind in _KINDS.items()}
_CHECKS: dict[str, tuple[tuple[str, _Check], ...]] = {
    name: tuple(
        (field.name, _check_of(get_type_hints(kind, include_extras=True)[field.name])) for field in fields(kind)
    )
    for name, kind in _KINDS.items()
}


def encode(message: Message) -> bytes:
    """The header frame of a message.

    Raises:
        LocalProtocolError: it does not fit into a header.
    """
    name, field_names = _LAYOUTS[type(message)]
    raw: bytes = msgpack.packb([VERSION, name, *[getattr(message, field) for field in field_names]])
    if len(raw) > MAX_HEADER_BYTES:
        raise LocalProtocolError(f"a {type(message).__name__} header of {len(raw)} bytes is too long")
    return raw


def decode(raw: bytes | memoryview) -> Message:
    """Read a header frame, trusting nothing in it.

    Raises:
        RemoteProtocolError: it is too long, not msgpack, of another version, of an unknown kind, or out of bounds.
    """
    if len(raw) > MAX_HEADER_BYTES:
        raise RemoteProtocolError(f"a header of {len(raw)} bytes is longer than {MAX_HEADER_BYTES}")
    try:
        value = msgpack.unpackb(raw, max_map_len=0, max_ext_len=0, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise RemoteProtocolError(f"a header is not msgpack: {error}") from error
    if type(value) is not list or len(value) < 2:
        raise RemoteProtocolError("a header is not an array")
    version, kind, *values = value
    if version != VERSION:
        raise RemoteProtocolError(f"the other side speaks protocol version {version!r}, this one {VERSION}")
    if type(kind) is not str or kind not in _KINDS:
        raise RemoteProtocolError(f"a message of unknown kind {kind!r:.40}")
    checks = _CHECKS[kind]
    if len(values) != len(checks):
        raise RemoteProtocolError(f"a {kind} message has {len(values)} fields instead of {len(checks)}")
    for (name, check), field in zip(checks, values, strict=True):
        if not check(field):
            raise RemoteProtocolError(f"a {kind} message has a bad {name}: {field!r:.60}")
    build: Callable[..., Message] = _KINDS[kind]
    return build(*(tuple(v) if type(v) is list else v for v in values))
