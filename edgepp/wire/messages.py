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

from collections.abc import Callable, Container, Sequence
from operator import contains
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

import msgpack

from edgepp.errors import LocalProtocolError, RemoteProtocolError

VERSION = 1
MAX_HEADER_BYTES = 4096
CONTROL_FRAME_BYTES = 1 << 16
"""The longest frame that a control socket takes."""
MAX_FRAMES = 4
"""Header and tensor frames of one message."""
MAX_TOKENS = 4096
"""Rows of one hidden-state tensor."""
MAX_WIDTH = 1 << 16
"""Columns of one hidden-state tensor: the hidden size D."""


def data_frame_bytes(width: int) -> int:
    """The longest frame that a data socket takes for hidden states of ``width`` values."""
    return MAX_TOKENS * width * 4


Id: TypeAlias = Annotated[int, 0, (1 << 63) - 1]
Count: TypeAlias = Annotated[int, 0, (1 << 48) - 1]
Rows: TypeAlias = Annotated[int, 0, MAX_TOKENS]
Width: TypeAlias = Annotated[int, 1, MAX_WIDTH]
Text: TypeAlias = Annotated[str, 0, 512]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
Codec: TypeAlias = Literal["none", "lz4", "zstd", "int8"]
Micros: TypeAlias = Annotated[tuple[int, ...], 0, 1024]
"""Microseconds that each stage so far computed on the frame; codec and queue time are not in it."""


class Hello(NamedTuple):
    """Coordinator to stage: tell me what you are."""

    node: Text


class Welcome(NamedTuple):
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


class Attach(NamedTuple):
    """Join the ring ``epoch`` as stage ``stage``; send on to ``next_address``, or to ``route`` when it is empty."""

    epoch: Id
    stage: Count
    next_address: Text
    route: Text
    codec: Codec


class Attached(NamedTuple):
    """The link to the next stage works; an echo of one hidden state took ``echo_us`` there and back."""

    epoch: Id
    echo_us: Count


class Refused(NamedTuple):
    """Why a ``Hello`` or ``Attach`` was not granted."""

    reason: Text


class Detach(NamedTuple):
    """Forget the epoch and free all of its sequences."""

    epoch: Id


class Free(NamedTuple):
    """Cancel a sequence and free its slot, whatever of it is still on the way."""

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
    stage: Count
    reason: Text


class Echo(NamedTuple):
    """Measures a data link: whoever binds sends it back as it came, with its one payload frame."""

    nonce: Id
    reply: bool


class Forward(NamedTuple):
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


class Hidden(NamedTuple):
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


class _Texts(NamedTuple):
    """Strings of a bounded length."""

    low: int
    high: int

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and self.low <= len(value) <= self.high


class _Counts(NamedTuple):
    """Bounded numbers of counts."""

    low: int
    high: int

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, tuple)
            and self.low <= len(value) <= self.high
            and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
        )


def _domain(hint: Any) -> tuple[type, Container[Any]]:
    """The type that a field's annotation asks for, and the values of that type that it allows."""
    if hint is bool:
        return bool, frozenset((False, True))
    if get_origin(hint) is Literal:
        return str, frozenset(get_args(hint))
    kind, low, high = get_args(hint)
    if kind is int:
        return int, range(low, high + 1)
    return (str, _Texts(low, high)) if kind is str else (tuple, _Counts(low, high))


class _Layout(NamedTuple):
    """A kind of message as it stands in a header."""

    kind: Callable[..., Message]
    names: tuple[str, ...]
    types: tuple[type, ...]
    allowed: tuple[Container[Any], ...]

    @classmethod
    def of(cls, kind: type[Message]) -> _Layout:
        hints = get_type_hints(kind, include_extras=True)
        types, allowed = zip(*(_domain(hints[name]) for name in kind._fields), strict=True)
        return cls(kind, kind._fields, types, allowed)

    def accepts(self, values: Sequence[Any]) -> bool:
        """Whether every field is as declared. Types come first: only an int may be looked for in a range."""
        return tuple(map(type, values)) == self.types and all(map(contains, self.allowed, values))

    def fault(self, values: Sequence[Any]) -> str:
        """What is wrong with fields that are not accepted."""
        if len(values) != len(self.names):
            return f"has {len(values)} fields instead of {len(self.names)}"
        for name, value, kind, allowed in zip(self.names, values, self.types, self.allowed, strict=True):
            if type(value) is not kind or value not in allowed:
                return f"has a bad {name}: {value!r:.60}"
        return "is malformed"


_NAMES: dict[type, str] = {kind: kind.__name__.lower() for kind in get_args(Message)}
_LAYOUTS: dict[str, _Layout] = {name: _Layout.of(kind) for kind, name in _NAMES.items()}


def encode(message: Message) -> bytes:
    """The header frame of a message.

    Raises:
        LocalProtocolError: it does not fit into a header.
    """
    raw: bytes = msgpack.packb((VERSION, _NAMES[type(message)], *message))
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
        value = msgpack.unpackb(raw, use_list=False, max_map_len=0, max_ext_len=0, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise RemoteProtocolError(f"a header is not msgpack: {error}") from error
    if type(value) is not tuple or len(value) < 2:
        raise RemoteProtocolError("a header is not an array")
    version, kind, *values = value
    if version != VERSION:
        raise RemoteProtocolError(f"the other side speaks protocol version {version!r}, this one {VERSION}")
    layout = _LAYOUTS.get(kind) if type(kind) is str else None
    if layout is None:
        raise RemoteProtocolError(f"a message of unknown kind {kind!r:.40}")
    if not layout.accepts(values):
        raise RemoteProtocolError(f"a {kind} message {layout.fault(values)}")
    return layout.kind(*values)
