"""Hostile messages at every handler: each is dropped within bounds of time and memory, and affects no other message."""

from __future__ import annotations

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
from edgepp.stage_process.next_stage import ConnectAttempt, NextStageLink
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import VERSION, Message
from edgepp.wire.messages.clients import Answered
from edgepp.wire.messages.control import Attached, Detach, Free, Hello, Ping, Pong, Refused, Welcome
from edgepp.wire.messages.data import Batch, Forward, Kept, KvPiece
from edgepp.wire.messages.nodes import Loaded
from edgepp.wire.messages.recovery import Expect, Replay
from edgepp.wire.transport import Sender
from tests.ceiling import ceiling
from tests.coordinator import close_coordinator, idle_coordinator, tell_coordinator, tick
from tests.stages import ATTACH, DRIVER, GUEST, PUSH, WELCOME, WIDTH, Stage, forward
from tests.wire import KEYS, messages

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
