from __future__ import annotations

from typing import Any, get_args, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import RemoteProtocolError
from edgepp.wire import messages
from edgepp.wire.messages import VERSION, Forward, Message, Pong, decode, encode


def _values(hint: Any) -> st.SearchStrategy[Any]:
    """Every value that a field's annotation allows."""
    if hint is bool:
        return st.booleans()
    arguments = get_args(hint)
    if isinstance(arguments[0], str):
        return st.sampled_from(arguments)
    kind, low, high = arguments
    if kind is int:
        return st.integers(low, high)
    if kind is str:
        return st.text(max_size=min(high, 60))
    return st.lists(st.integers(0, 1 << 40), min_size=low, max_size=8).map(tuple)


def _messages() -> st.SearchStrategy[Message]:
    return st.one_of(
        st.builds(kind, **{name: _values(get_type_hints(kind, include_extras=True)[name]) for name in kind._fields})
        for kind in get_args(Message)
    )


@given(_messages())
def test_every_message_survives_the_wire(message: Message) -> None:
    received = decode(encode(message))
    assert (type(received), received) == (type(message), message)


@given(st.binary(max_size=5000))
def test_noise_is_refused_not_believed(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(raw)


@given(_messages(), st.data())
def test_one_flipped_byte_is_refused_or_still_a_valid_message(message: Message, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        mutated = decode(bytes(raw))
    except RemoteProtocolError:
        return
    assert decode(encode(mutated)) == mutated


@given(_messages(), st.data())
def test_a_field_of_another_type_is_refused(message: Message, data: st.DataObject) -> None:
    values = list(message)
    if not values:
        return
    at = data.draw(st.integers(0, len(values) - 1))
    values[at] = data.draw(st.sampled_from([None, -1, 1 << 63, 1.5, b"x", {}, ["x"], [[]], "\0" * 600]))
    kind = type(message).__name__.lower()
    raw = msgpack.packb([VERSION, kind, *values])
    with pytest.raises(RemoteProtocolError, match=kind):
        decode(raw)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([VERSION + 1, "pong", 0], f"protocol version {VERSION + 1}, this one {VERSION}"),
        ([VERSION, "format_disk"], "unknown kind"),
        ([VERSION, 7], "unknown kind"),
        ([VERSION, "pong", 1], "has 1 fields instead of 7"),
        ({"version": 1}, "not"),
        ([], "not an array"),
        (7, "not an array"),
    ],
)
def test_the_reason_is_said(value: Any, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        decode(msgpack.packb(value))


def test_bombs_are_cheap() -> None:
    """Headers that claim to be huge or nest without end are refused within the header limit."""
    bombs = [b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 4096, b"\x81" * 4096, b"\xc7\xff\x01" * 100]
    for bomb in [*bombs, b"x" * (messages.MAX_HEADER_BYTES + 1)]:
        with pytest.raises(RemoteProtocolError):
            decode(bomb)


def test_a_bool_is_not_a_number() -> None:
    raw = msgpack.packb(
        [VERSION, "pong", *Pong(1, known=True, busy_us=0, frames=0, dropped=0, sequences=0, kv_bytes=0)]
    )
    assert decode(raw)
    with pytest.raises(RemoteProtocolError, match="bad epoch"):
        decode(msgpack.packb([VERSION, "pong", True, True, 0, 0, 0, 0, 0]))


def test_a_decode_header_is_small() -> None:
    frame = Forward(1 << 61, 12, 9999, 4000, 5000, 0, 1, 1, 8192, "bfloat16", "none", (5000, 5000, 5000))
    assert len(encode(frame)) < 100
