"""Hostile pieces of keys and values: a stage takes only those that it expects, from the stage that sends them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgepp.stage_process.early_pieces import MAX_BYTES_PER_SENDER, MAX_SENDERS
from edgepp.wire.message_codec import encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Detach, Fault, Free, Refused
from edgepp.wire.messages.data import Kept, KvPiece
from edgepp.wire.messages.recovery import Expect, Rebuilt
from edgepp.wire.transport import Sender
from tests.stages import ATTACH, DRIVER, GUEST, PUSH, WIDTH, Stage, forward
from tests.wire import KEYS

PIECE = KvPiece(1, 1, "copy", 4, 6, 0, 2, "form", zlib.crc32(b"aabb"), 1)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


def put(stage: Stage, piece: KvPiece | Kept, *frames: bytes, sender: Sender = GUEST) -> None:
    stage.data.put(sender, [encode(piece), *frames])
    stage.compute.receive()


def test_copies_are_kept_from_the_named_stage_alone_and_only_where_asked_for(stage: Stage) -> None:
    stage.order(DRIVER, encode(ATTACH))
    put(stage, PIECE, b"aabb")
    assert stage.compute.bulk.nbytes == 0
    stage.order(DRIVER, encode(ATTACH._replace(keeps_copies=True, copies_from=KEYS[2])))
    put(stage, PIECE, b"aabb")
    sender = GUEST._replace(key=KEYS[2])
    for bad in (
        PIECE._replace(epoch=9),
        PIECE._replace(checksum=1),
        PIECE._replace(start=1),
        PIECE._replace(stop=65),
    ):
        put(stage, bad, b"aabb", sender=sender)
    put(stage, PIECE, sender=sender)
    put(stage, PIECE, b"aa", b"bb", sender=sender)
    assert stage.compute.bulk.nbytes == 0
    assert stage.compute.runner.counters.dropped == 8
    put(stage, PIECE, b"aabb", sender=sender)
    assert stage.compute.bulk.nbytes > 0
    stage.order(DRIVER, encode(Free(1, 1)))
    assert stage.compute.bulk.nbytes == 0
    assert stage.faults() == []


def test_what_is_kept_is_told_to_the_stage_for_which_it_is_kept_alone(stage: Stage) -> None:
    question = Kept(1, 1, 0, 4, 6, 1000, "form", 1, reply=False)
    stage.order(DRIVER, encode(ATTACH))
    put(stage, question)
    stage.order(DRIVER, encode(ATTACH._replace(keeps_copies=True, copies_from=KEYS[2])))
    sender = GUEST._replace(key=KEYS[2])
    put(stage, PIECE, b"aabb", sender=sender)
    put(stage, question._replace(length=0))
    put(stage, question._replace(epoch=9), sender=sender)
    put(stage, question._replace(reply=True), sender=sender)
    assert stage.data.sent == []
    for asked, told in (
        (question, 2),
        (question._replace(layout="another"), 0),
        (question._replace(stop_layer=7), 0),
        (question._replace(sequence=2), 0),
        (question._replace(sequence=2, source=1), 2),
        (question._replace(length=1), 0),
    ):
        put(stage, asked, sender=sender)
        (_, answer) = stage.data.sent.pop()
        assert answer == asked._replace(length=told, reply=True)
    stage.order(DRIVER, encode(Free(1, 2)))
    assert stage.compute.bulk.nbytes == 0
    assert stage.faults() == []


def test_copies_beyond_the_memory_for_them_are_dropped_and_counted(stage: Stage) -> None:
    stage.order(DRIVER, encode(ATTACH._replace(keeps_copies=True, copies_from=GUEST.key)))
    stage.compute.bulk._copies._max_bytes = 3000
    for sequence in range(40):
        put(stage, PIECE._replace(sequence=sequence), b"aabb")
    assert 0 < stage.compute.bulk.nbytes <= 3000
    assert stage.compute.runner.counters.dropped > 20


def test_keys_and_values_are_restored_from_the_named_stage_alone(stage: Stage) -> None:
    stage.model.kv_layout = "form"
    stage.order(DRIVER, encode(ATTACH))
    assert stage.order(DRIVER, encode(Expect(1, 1, 64, 2, KEYS[2]))) == []
    piece = PIECE._replace(purpose="restore", start_layer=0, stop_layer=4)
    imported: list[Any] = []
    stage.model.import_kv = lambda *rest: imported.append(rest)  # type: ignore[attr-defined]
    stage.model.set_length = stage.model.truncate  # type: ignore[attr-defined]
    put(stage, piece, b"aabb")
    assert stage.compute.runner.sequences == 1
    assert imported == []
    assert stage.order(DRIVER, encode(Expect(1, 2, 64, 2, KEYS[2]))) == []
    put(stage, piece._replace(sequence=2), b"aabb")
    assert imported == []
    put(stage, piece, b"aabb", sender=GUEST._replace(key=KEYS[2]))
    assert len(imported) == 1
    assert stage.compute.runner.lengths(1) == {1: 2, 2: 0}
    assert stage.faults() == []


def test_keys_and_values_may_come_before_they_are_expected(stage: Stage) -> None:
    stage.model.kv_layout = "form"
    stage.model.import_kv = lambda *rest: None  # type: ignore[attr-defined]
    stage.model.set_length = stage.model.truncate  # type: ignore[attr-defined]
    stage.order(DRIVER, encode(ATTACH))
    piece = PIECE._replace(purpose="restore", start_layer=0, stop_layer=4)
    put(stage, piece, b"aabb")
    put(stage, piece._replace(start=2, stop=4), b"aabb")
    assert stage.order(DRIVER, encode(Expect(1, 1, 64, 4, GUEST.key))) == [Rebuilt(1, 1, 4)]
    assert stage.compute.bulk._arrivals._early._senders == {}


def test_early_pieces_are_bounded_and_those_that_were_dropped_are_a_fault(stage: Stage) -> None:
    stage.model.kv_layout = "form"
    stage.order(DRIVER, encode(ATTACH))
    piece, raw = PIECE._replace(purpose="restore", start_layer=0, stop_layer=4), bytes(1 << 20)
    for sequence in range(1, 7):
        put(stage, piece._replace(sequence=sequence, checksum=zlib.crc32(raw)), raw)
    (of,) = stage.compute.bulk._arrivals._early._senders.values()
    assert of.nbytes <= MAX_BYTES_PER_SENDER
    (fault,) = stage.order(DRIVER, encode(Expect(1, 6, 64, 2, GUEST.key)))
    assert isinstance(fault, Fault)
    assert "before they were expected" in fault.reason
    stage.order(DRIVER, encode(Detach(1)))
    assert stage.compute.bulk._arrivals._early._senders == {}
    stage.order(DRIVER, encode(ATTACH))
    for number in range(MAX_SENDERS + 5):
        put(stage, PIECE._replace(purpose="restore"), b"aabb", sender=GUEST._replace(key=f"key {number}"))
    assert len(stage.compute.bulk._arrivals._early._senders) == MAX_SENDERS


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layout": "another"}, "of the form 'another'"),
        ({"checksum": 1}, "checksum"),
        ({"start": 1}, "missing or not wanted"),
        ({"stop_layer": 5}, "missing or not wanted"),
    ],
)
def test_a_piece_that_does_not_fit_fails_its_sequence_alone(stage: Stage, changes: dict[str, Any], reason: str) -> None:
    stage.model.kv_layout = "form"
    stage.order(DRIVER, encode(ATTACH))
    stage.feed(forward(7), np.ones((1, WIDTH)))
    stage.order(DRIVER, encode(Expect(1, 1, 64, 2, GUEST.key)))
    piece = PIECE._replace(purpose="restore", start_layer=0, stop_layer=4)
    put(stage, piece._replace(**changes), b"aabb")
    (fault,) = stage.faults()
    assert isinstance(fault, Fault)
    assert fault.sequence == 1
    assert reason in fault.reason
    assert stage.compute.runner.lengths(1) == {7: 1}
    put(stage, piece, b"aabb")
    assert stage.faults() == []


@pytest.mark.parametrize(
    ("expect", "reason"),
    [
        (Expect(1, 1, 65, 2, GUEST.key), "context of 64"),
        (Expect(1, 7, 64, 65, GUEST.key)._replace(capacity=65), "it may have 65"),
        (Expect(1, 9, 64, 2, GUEST.key), "was freed"),
    ],
)
def test_an_expectation_that_cannot_be_met_is_a_fault(stage: Stage, expect: Expect, reason: str) -> None:
    stage.model.kv_layout = "form"
    stage.order(DRIVER, encode(ATTACH))
    stage.feed(forward(7), np.ones((1, WIDTH)))
    stage.order(DRIVER, encode(Free(1, 9)))
    (fault,) = stage.order(DRIVER, encode(expect))
    assert isinstance(fault, Fault)
    assert reason in fault.reason


@pytest.mark.parametrize("message", [PUSH._replace(key=""), Expect(1, 1, 64, 2, "")])
def test_keys_and_values_leave_and_enter_an_encrypted_stage_encrypted(stage: Stage, message: Message) -> None:
    stage.order(DRIVER, encode(ATTACH))
    (refused,) = stage.order(DRIVER, encode(message))
    assert isinstance(refused, Refused)
    assert "which is encrypted" in refused.reason


@pytest.mark.parametrize(
    "changes", [{"keeper_addresses": "10.0.0.9:5721"}, {"keeps_copies": True}], ids=["keeper", "keeps copies"]
)
def test_copies_go_over_encrypted_links(stage: Stage, changes: dict[str, Any]) -> None:
    (refused,) = stage.order(DRIVER, encode(ATTACH._replace(**changes)))
    assert isinstance(refused, Refused)
    assert "which is encrypted" in refused.reason
