"""Inputs that are several messages one after the other, each with a sender and a socket."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any, NamedTuple

import msgpack

from edgepp.wire import codec
from edgepp.wire.message_codec import encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.data import Batch, Forward
from tests.fuzz.mutation import JUNK, mutated_json, mutated_value
from tests.fuzz.target import examples
from tests.wire import messages

_MAX_MESSAGES = 12
_HEAD = struct.Struct("<BB")
_LENGTH = struct.Struct("<H")


class Said(NamedTuple):
    """One message of an input."""

    flags: int
    """Bit 0: of a guest, not of the driver. Bit 1: on the data socket, not on the control socket."""
    frames: list[bytes]

    @property
    def by_guest(self) -> bool:
        """Whether a member without rights sends the message."""
        return bool(self.flags & 1)

    @property
    def on_data(self) -> bool:
        """Whether the message comes on the data socket."""
        return bool(self.flags & 2)


def said(message: Message, *frames: bytes, flags: int = 0) -> Said:
    """A real message."""
    if isinstance(message, Forward | Batch):
        message = message._replace(checksum=codec.checksum(frames))
    return Said(flags, [encode(message), *frames])


def pack(given: Iterable[Said]) -> bytes:
    """The input of these messages."""
    raw = b""
    for one in given:
        raw += _HEAD.pack(one.flags, len(one.frames))
        raw += b"".join(_LENGTH.pack(len(frame)) + frame for frame in one.frames)
    return raw


def unpack(raw: bytes) -> list[Said]:
    """The messages of an input; any bytes are one."""
    found: list[Said] = []
    at = 0
    while at + _HEAD.size <= len(raw) and len(found) < _MAX_MESSAGES:
        flags, num_frames = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        frames = []
        for _ in range(max(1, num_frames % 5)):
            length = _LENGTH.unpack_from(raw, at)[0] if at + _LENGTH.size <= len(raw) else 0
            at += _LENGTH.size
            frames.append(raw[at : at + length])
            at += length
        found.append(Said(flags, frames))
    return found


def single_messages(number: int = 80) -> list[Said]:
    """Messages of every kind, from sender and socket at random."""
    made = examples(messages(), number)
    return [said(message, b"{}", flags=place % 4) for place, message in enumerate(made)]


def mutator(pool: Sequence[Said]) -> Any:
    """A ``Target.mutate`` that also puts in messages of ``pool``."""

    def mutate(raw: bytes, draw: Random) -> bytes:
        given = unpack(raw) or [draw.choice(pool)]
        at = draw.randrange(len(given))
        match draw.randrange(7):
            case 0:
                given.insert(at, draw.choice(pool))
            case 1:
                del given[at]
            case 2:
                given.insert(at, given[at])
            case 3:
                given[at] = given[at]._replace(flags=draw.randrange(4))
            case 4 if len(given[at].frames) > 1:
                given[at].frames[1] = mutated_json(given[at].frames[1], draw) or draw.randbytes(32)
            case _:
                given[at].frames[0] = mutated_header(given[at].frames[0], draw)
        return pack(given)

    return mutate


def mutated_header(raw: bytes, draw: Random) -> bytes:
    """A header with one field changed; the same bytes for what is no header."""
    try:
        version, kind, *fields = msgpack.unpackb(raw, max_map_len=0, max_ext_len=0)
        packed: bytes = msgpack.packb([version, kind, *mutated_value(fields, draw, (*JUNK, b"\0"))])
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return raw
    return packed
