"""Hostile messages at every handler: each is dropped within bounds of time and memory, and affects no other message."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp.coordinator.coordinator import Coordinator
from edgepp.errors import RemoteProtocolError
from edgepp.stage_process.control_thread import MAX_EPOCHS_PER_OWNER
from edgepp.stage_process.early_pieces import MAX_BYTES_PER_SENDER, MAX_SENDERS
from edgepp.stage_process.next_stage import ConnectAttempt, NextStageLink
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import VERSION, Message
from edgepp.wire.messages.clients import Answered
from edgepp.wire.messages.control import Attached, Detach, Fault, Free, Hello, Ping, Pong, Refused, Welcome
from edgepp.wire.messages.data import Batch, Forward, Kept, KvPiece
from edgepp.wire.messages.nodes import Loaded
from edgepp.wire.messages.recovery import Expect, Push, Rebuilt, Replay
from edgepp.wire.transport import Sender
from tests.ceiling import ceiling
from tests.coordinator import close_coordinator, idle_coordinator, tell_coordinator, tick
from tests.stages import ATTACH, DRIVER, GUEST, WELCOME, WIDTH, Stage, forward
from tests.wire import KEYS, messages

PUSH = Push(1, 1, "kv", 0, 4, 0, 1, "10.0.0.9:5721", KEYS[2], 2)
PIECE = KvPiece(1, 1, "copy", 4, 6, 0, 2, "form", zlib.crc32(b"aabb"), 1)
_QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


_JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)
_KINDS = [kind.__name__.lower() for kind in get_args(Message)]
HEADERS = (
    messages().map(encode)
    | st.binary(max_size=200)
    | st.tuples(st.sampled_from(_KINDS), st.lists(_JUNK, max_size=14)).map(
        lambda m: msgpack.packb([VERSION, m[0], *m[1]])
    )
)
PAYLOADS = st.binary(max_size=64) | st.sampled_from([b"{}", b"[" * 60000, b'{"keys":1}', b'{"a":1e999}', b"9" * 5000])
MESSAGES = st.tuples(HEADERS, st.lists(PAYLOADS, max_size=3)).map(lambda parts: [parts[0], *parts[1]])


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


@given(MESSAGES)
@_QUICK
def test_a_decoder_has_a_ceiling(frames: list[bytes]) -> None:
    with ceiling():
        try:
            decode(frames[0])
            said = ""
        except RemoteProtocolError as error:
            said = str(error)
    assert len(said) < 500


@given(st.lists(st.tuples(st.sampled_from([DRIVER, GUEST]), MESSAGES), max_size=5))
@_QUICK
def test_a_stages_control_survives_any_message(stage: Stage, said: list[tuple[Sender, list[bytes]]]) -> None:
    for sender, frames in said:
        with ceiling():
            stage.order(sender, *frames)
    (pong,) = stage.order(DRIVER, encode(Ping(1)))
    assert isinstance(pong, Pong)


def _ours(message: Message) -> bytes:
    """A frame of the epoch and width that the stage knows, or a piece for it, or a question about its copies."""
    assert isinstance(message, Forward | Batch | KvPiece | Kept)
    if isinstance(message, KvPiece | Kept):
        return encode(message._replace(epoch=1, sequence=message.sequence % 3))
    return encode(message._replace(epoch=1, width=WIDTH))


_TENSORS = st.lists(PAYLOADS | st.binary(min_size=32, max_size=32), max_size=2)


@given(st.lists(st.tuples(HEADERS | messages(Forward, Batch, KvPiece, Kept).map(_ours), _TENSORS), max_size=5))
@_QUICK
def test_a_stages_compute_survives_any_message(said: list[tuple[bytes, list[bytes]]]) -> None:
    with closing(Stage()) as stage:
        stage.order(DRIVER, encode(ATTACH._replace(keeps_copies=True, copies_from=GUEST.key)))
        stage.order(DRIVER, encode(Expect(1, 2, 64, 8, GUEST.key)))
        for header, tensor in said:
            with ceiling():
                stage.data.put(GUEST, [header, *tensor])
                stage.compute.receive()
        stage.order(DRIVER, encode(Detach(1)))
        assert not stage.model.lengths
        stage.order(DRIVER, encode(ATTACH._replace(epoch=2)))
        stage.data.sent.clear()
        stage.feed(forward(1)._replace(epoch=2), np.ones((1, WIDTH)))
        assert len(stage.data.sent) == 1


def test_a_stage_of_a_cluster_takes_orders_from_its_coordinator_alone(stage: Stage) -> None:
    (refused,) = stage.order(GUEST, encode(ATTACH))
    assert isinstance(refused, Refused)
    assert "of a guest" in refused.reason
    assert isinstance(stage.order(DRIVER, encode(ATTACH))[0], Attached)
    orders = (Detach(1), Free(1, 1), Replay(1, 1, 64, 0, 1, 1), Expect(1, 1, 64, 1, GUEST.key), PUSH)
    for message in orders:
        assert isinstance(stage.order(GUEST, encode(message))[0], Refused)
    assert stage.order(DRIVER, encode(Ping(1)))[0].known  # type: ignore[union-attr]
    assert not stage.order(GUEST, encode(Ping(1)))[0].known  # type: ignore[union-attr]
    assert isinstance(stage.order(GUEST, encode(Hello("x")))[0], Welcome)


def test_frames_come_from_the_previous_stage_alone(stage: Stage) -> None:
    stage.order(DRIVER, encode(ATTACH._replace(previous_key=KEYS[2])))
    previous = Sender(b"previous", KEYS[2], "10.0.0.3")
    row = np.ones((1, WIDTH), np.float32)
    stage.feed(forward(1), row, previous)
    stage.data.sent.clear()
    batch = Batch(1, 9, (1,), (1,), WIDTH, "float32", "none", ())
    for sender in (DRIVER, GUEST, Sender(b"previous", "", "10.0.0.3")):
        for frame in (forward(1, position=1), forward(2), batch):
            stage.feed(frame, row, sender)
    assert stage.data.sent == []
    assert stage.faults() == []
    assert stage.compute.runner.counters.dropped == 9
    assert list(stage.model.lengths.values()) == [1]
    stage.feed(batch, row, previous)
    assert len(stage.data.sent) == 1


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


@pytest.mark.parametrize(("key", "previous_key"), [(DRIVER.key, ""), ("", KEYS[1])], ids=["driver", "no name"])
def test_a_previous_key_that_no_sender_could_prove_is_refused(stage: Stage, key: str, previous_key: str) -> None:
    (refused,) = stage.order(DRIVER._replace(key=key), encode(ATTACH._replace(previous_key=previous_key)))
    assert isinstance(refused, Refused)
    assert "previous stage's key" in refused.reason


def test_without_keys_an_epoch_belongs_to_the_host_that_attached_it(stage: Stage) -> None:
    one, other = Sender(b"one", "", "10.0.0.1"), Sender(b"other", "", "10.0.0.2")
    attach = ATTACH._replace(previous_key="")
    assert isinstance(stage.order(one, encode(attach))[0], Attached)
    orders = (Replay(1, 1, 64, 0, 1, 1), Expect(1, 1, 64, 1, ""), PUSH._replace(key=""))
    for message in (attach, Detach(1), Free(1, 1), *orders):
        (refused,) = stage.order(other, encode(message))
        assert isinstance(refused, Refused)
        assert "another coordinator" in refused.reason
    assert stage.order(one, encode(Ping(1)))[0].known  # type: ignore[union-attr]


def test_the_epochs_of_one_driver_are_bounded(stage: Stage) -> None:
    answers = [
        stage.order(DRIVER, encode(ATTACH._replace(epoch=epoch)))[0] for epoch in range(MAX_EPOCHS_PER_OWNER + 5)
    ]
    assert [type(answer) for answer in answers].count(Attached) == MAX_EPOCHS_PER_OWNER
    assert isinstance(answers[-1], Refused)
    stage.order(DRIVER, encode(Detach(0)))
    assert isinstance(stage.order(DRIVER, encode(ATTACH._replace(epoch=99)))[0], Attached)


def test_an_attempt_that_was_given_up_leaves_no_ring(stage: Stage) -> None:
    attempt = ConnectAttempt(b"driver", ATTACH, given_up=True)
    stage.compute.execute(NextStageLink(attempt))
    assert stage.compute._rings.by_epoch == {}


def test_an_error_of_ours_in_a_step_ends_that_sequence_alone(stage: Stage) -> None:
    stage.order(DRIVER, encode(ATTACH))
    stage.feed(forward(1), np.ones((1, WIDTH)))
    stage.model.broken = True
    stage.feed(forward(2), np.ones((1, WIDTH)))
    stage.model.broken = False
    assert [(fault.sequence, fault.reason) for fault in stage.faults()] == [(2, "ZeroDivisionError: a bug of ours")]
    stage.feed(forward(1, position=1), np.ones((1, WIDTH)))
    assert stage.faults() == []
    assert len(stage.data.sent) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_hidden_states_that_are_no_numbers_end_their_own_sequence(stage: Stage, bad: float) -> None:
    stage.order(DRIVER, encode(ATTACH))
    for sequence in (1, 2, 3):
        stage.feed(forward(sequence), np.ones((1, WIDTH)))
    rows = np.ones((3, WIDTH), np.float32)
    rows[1, 3] = bad
    stage.data.sent.clear()
    stage.feed(Batch(1, 9, (1, 2, 3), (1, 1, 1), WIDTH, "float32", "none", ()), rows)
    (fault,) = stage.faults()
    assert (fault.sequence, fault.stage) == (2, 0)
    assert "not finite" in fault.reason
    ((_, answer),) = stage.data.sent
    assert isinstance(answer, Batch)
    assert answer.sequences == (1, 3)
    stage.feed(forward(1, position=2), rows[1:2])
    assert [fault.sequence for fault in stage.faults()] == [1]
    assert stage.compute.runner.sequences == 1


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    made = idle_coordinator()
    yield made
    close_coordinator(made)


@given(st.lists(st.tuples(st.sampled_from([DRIVER, GUEST]), MESSAGES), max_size=5))
@_QUICK
def test_a_coordinator_survives_any_message(coordinator: Coordinator, said: list[tuple[Sender, list[bytes]]]) -> None:
    for sender, frames in said:
        with ceiling():
            tell_coordinator(coordinator, sender, frames)
    with ceiling():
        tick(coordinator)
    assert coordinator.trust_store.node_of(GUEST.key)


@pytest.mark.parametrize("message", [Answered(1), WELCOME, Loaded(1, 0, 1, 1, "", "", 1, 1, 1, 1), ATTACH])
def test_a_stranger_and_a_wrong_role_change_nothing(coordinator: Coordinator, message: Message) -> None:
    version = coordinator.members.version
    for sender in (DRIVER, GUEST):
        tell_coordinator(coordinator, sender, [encode(message)])
    assert coordinator.members.version == version
