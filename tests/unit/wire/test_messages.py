from __future__ import annotations

from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import LocalProtocolError, RemoteProtocolError
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import MAX_HEADER_BYTES, VERSION, Message
from edgepp.wire.messages.clients import Declined
from edgepp.wire.messages.control import Attach, Fault, Hello, Pong, Welcome
from edgepp.wire.messages.data import Batch, Forward, Kept, KvPiece
from edgepp.wire.messages.nodes import Drained, Enrol, Leaving, Load, Restart, Retire, Warm
from edgepp.wire.messages.recovery import Expect, Held, Push, Replay
from edgepp.wire.permissions import SPEAKERS, VERBS_OF_OWNER, check_speaker
from edgepp.wire.text_fields import are_addresses, are_hosts, is_key, is_name, is_route, sentence
from tests.wire import KEYS, messages


@given(messages())
def test_every_message_survives_the_wire(message: Message) -> None:
    received = decode(encode(message))
    assert (type(received), received) == (type(message), message)


@given(st.binary(max_size=5000))
def test_noise_is_refused(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(raw)


@given(messages(), st.data())
def test_one_flipped_byte_is_refused_or_still_a_valid_message(message: Message, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        mutated = decode(bytes(raw))
    except RemoteProtocolError:
        return
    assert decode(encode(mutated)) == mutated


@given(messages(), st.data())
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
        ([VERSION, "pong", 1], "has 1 fields instead of 14"),
        ({"version": 1}, "not"),
        ([], "not an array"),
        (7, "not an array"),
    ],
)
def test_the_error_names_the_reason(value: Any, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        decode(msgpack.packb(value))


def test_bombs_are_cheap() -> None:
    """Headers that claim to be huge or nest without end are refused within the header limit."""
    bombs = [b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 4096, b"\x81" * 4096, b"\xc7\xff\x01" * 100]
    for bomb in [*bombs, b"x" * (MAX_HEADER_BYTES + 1)]:
        with pytest.raises(RemoteProtocolError):
            decode(bomb)


def test_a_bool_is_not_a_number() -> None:
    pong = Pong(1, True, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert decode(msgpack.packb([VERSION, "pong", *pong]))
    with pytest.raises(RemoteProtocolError, match="bad epoch"):
        decode(msgpack.packb([VERSION, "pong", *pong._replace(epoch=True)]))


def test_a_decode_header_is_small() -> None:
    frame = Forward(1 << 61, 12, 9999, 4000, 5000, 0, 1, 1, 8192, "bfloat16", "none", (5000, 5000, 5000))
    assert len(encode(frame)) < 100


ATTACH = Attach(1, 0, "10.0.0.2:5720,[fe80::1%eth0]:5721", KEYS[0], b"c1".hex(), "auto", 0)
FORWARD = Forward(1, 1, 0, 0, 16, 0, 1, 1, 8, "float32", "none", ())
BATCH = Batch(1, 1, (1, 2), (4, 5), 8, "float32", "none", ())
HELD = Held(1, "kv", 0, 2, (1, 2), (4, 5))
PUSH = Push(1, 1, "kv", 0, 2, 0, 9, "10.0.0.2:5720", KEYS[0], 2)
KEPT = Kept(1, 1, 0, 0, 2, 9, "1 float32 3x64", 7, reply=False)
PIECE = KvPiece(1, 1, "restore", 0, 2, 0, 9, "1 float32 3x64", 7)
LOAD = Load(1, 0, "tiny", 0, 4, False, 0)
ENROL = Enrol(1, "mini", "0.1.0", "10.0.0.2,fe80::1%eth0", 1, "onnx", "cpu", 1, 1, 0, 0, 1, 1)
WELCOME = Welcome(
    "n", 1, 5721, "m", "f" * 16, "", 0, 4, 4, 8, 64, "onnx", "cpu", "float32", False, 8, 1, 1, 1, rewinds=True
)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (ATTACH._replace(route="zz"), "bad route"),
        (ATTACH._replace(route="636"), "bad route"),
        (ATTACH._replace(route="00aa"), "bad route"),
        (ATTACH._replace(route=""), "bad route"),
        (ATTACH._replace(route="63" * 256), "bad route"),
        (ATTACH._replace(next_key="not a key"), "bad next_key"),
        (ATTACH._replace(previous_key="not a key"), "bad previous_key"),
        (ATTACH._replace(next_key="#" * 40), "bad next_key"),
        (ATTACH._replace(next_addresses=""), "without its addresses"),
        (ATTACH._replace(next_addresses="10.0.0.2"), "bad next_addresses"),
        (ATTACH._replace(next_addresses="*:5720"), "bad next_addresses"),
        (ATTACH._replace(next_addresses="10.0.0.2:0"), "bad next_addresses"),
        (ATTACH._replace(next_addresses="10.0.0.2:70000"), "bad next_addresses"),
        (ATTACH._replace(next_addresses="a:1;inproc://x:1"), "bad next_addresses"),
        (ATTACH._replace(next_addresses=",".join(["10.0.0.2:1"] * 17)), "bad next_addresses"),
        (ATTACH._replace(stage=1 << 20), "bad stage"),
        (ATTACH._replace(keeper_key=KEYS[1]), "keeper of copies without its addresses"),
        (ATTACH._replace(copies_from=KEYS[1]), "accepts none"),
        (ATTACH._replace(inherits=1), "inherits its own epoch"),
        (HELD._replace(stop=0), "layer range"),
        (HELD._replace(positions=(1,)), "do not match"),
        (HELD._replace(what="tokens"), "bad what"),
        (Replay(1, 1, 8, 4, 4, 1), "range of positions"),
        (Replay(1, 1, 8, 0, 9, 1), "range of positions"),
        (Replay(1, 1, 8, 0, 8, 1, source=2), "copies nothing"),
        (Expect(1, 1, 8, 0, ""), "impossible length"),
        (Expect(1, 1, 8, 9, ""), "impossible length"),
        (PUSH._replace(start_layer=2), "empty range"),
        (PUSH._replace(stop=0), "empty range"),
        (PUSH._replace(addresses=""), "no address"),
        (PIECE._replace(stop=0), "empty range"),
        (KEPT._replace(stop_layer=0), "empty range"),
        (PIECE._replace(checksum=1 << 32), "bad checksum"),
        (PIECE._replace(layout="a\nb"), "bad layout"),
        (FORWARD._replace(until=1 << 20), "bad until"),
        (FORWARD._replace(serial=-1), "bad serial"),
        (FORWARD._replace(rows=0, wanted_rows=0), "wants 0 rows of 0"),
        (FORWARD._replace(wanted_rows=2), "wants 2 rows of 1"),
        (FORWARD._replace(wanted_rows=0, result="logits"), "wants no rows, in form logits"),
        (FORWARD._replace(dtype="float64"), "bad dtype"),
        (BATCH._replace(sequences=(1, 1)), "do not match"),
        (BATCH._replace(positions=(1,)), "do not match"),
        (BATCH._replace(positions=()), "bad positions"),
        (LOAD._replace(start=4), "layer range"),
        (LOAD._replace(head=True), "has no group"),
        (LOAD._replace(group=5, rank=2, weights=(1, 1)), "does not fit its group"),
        (Warm(1, "tiny", 4, 4), "layer range"),
        (LOAD._replace(model="a\x1b]52;c;x\x07"), "bad model"),
        (ENROL._replace(name=""), "bad name"),
        (ENROL._replace(name="a\nb"), "bad name"),
        (ENROL._replace(name="\u202egpj"), "bad name"),
        (ENROL._replace(addresses="mini.local"), "bad addresses"),
        (ENROL._replace(start=3, stop=2), "layer range"),
        (WELCOME._replace(stop=5), "layer range"),
        (WELCOME._replace(data_port=0), "bad data_port"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_message_without_meaning_is_refused_by_name(message: Message, fault: str) -> None:
    with pytest.raises(RemoteProtocolError, match=fault):
        decode(encode(message))


def test_the_unchanged_messages_are_valid() -> None:
    for message in (ATTACH, FORWARD, BATCH, HELD, PUSH, PIECE, KEPT, LOAD, ENROL, WELCOME):
        assert decode(encode(message)) == message


@given(st.text(max_size=60))
def test_text_of_any_kind_is_checked_without_an_error(text: str) -> None:
    for check in (is_key, is_name, is_route, are_addresses, are_hosts):
        assert check(text) in (True, False)


@given(st.text(st.characters(exclude_categories=())) | st.sampled_from(["😀" * 2000, "\ud800" * 900, "a\nb\x1b[2J"]))
def test_any_reason_fits_into_a_header(reason: str) -> None:
    said = sentence(reason)
    assert decode(encode(Fault(1, 1, 0, said))) == Fault(1, 1, 0, said)
    assert decode(encode(Declined(1, said, said)))
    assert "\n" not in said


def test_a_message_that_cannot_be_encoded_is_a_local_error() -> None:
    for message in (Hello("\ud800"), FORWARD._replace(epoch=1 << 70), Hello("x" * 5000)):
        with pytest.raises(LocalProtocolError):
            encode(message)


def test_every_kind_of_message_has_its_speakers() -> None:
    assert set(SPEAKERS) == set(get_args(Message))
    assert all(SPEAKERS.values())


@pytest.mark.parametrize(
    ("message", "socket", "role"),
    [
        (ATTACH, "control", "guest"),
        (ATTACH, "data", "driver"),
        (ENROL, "cluster", "token"),
        (ENROL, "control", "driver"),
        (LOAD, "cluster", "member"),
        (Restart(1, 0, 77), "cluster", "member"),
        (Retire(1, 0), "cluster", "member"),
        (Warm(1, "tiny", 0, 4), "cluster", "member"),
        (Leaving(1), "cluster", "coordinator"),
        (Drained(1), "cluster", "member"),
        (FORWARD, "control", "driver"),
        (WELCOME, "control", "driver"),
        (PUSH, "control", "guest"),
        (PUSH, "data", "driver"),
        (PIECE, "control", "driver"),
        (KEPT, "control", "driver"),
        (PIECE, "data", "stage"),
        (HELD, "control", "driver"),
    ],
)
def test_a_message_of_the_wrong_speaker_is_refused(message: Message, socket: Any, role: Any) -> None:
    with pytest.raises(RemoteProtocolError, match=f"of a {role} on a {socket} socket"):
        check_speaker(message, socket, role)
    check_speaker(ATTACH, "control", "driver")


def test_only_the_owner_admits_and_revokes() -> None:
    assert {"invite", "token", "revoke", "use", "drain"} <= VERBS_OF_OWNER
