"""Hostile messages at every handler: each costs itself, within a ceiling of time and memory, and no other."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp.cluster.identity import Member, load_identity, new_cluster
from edgepp.errors import EdgeppError, RemoteProtocolError
from edgepp.node.compute import Compute
from edgepp.node.control import MOST_EPOCHS_OF_ONE, Control
from edgepp.node.joining import Attempt, Joined
from edgepp.node.worker import Worker
from edgepp.serve.coordinator import Coordinator
from edgepp.serve.director import Director
from edgepp.wire.messages import (
    VERSION,
    Answered,
    Attach,
    Attached,
    Batch,
    Detach,
    Fault,
    Forward,
    Free,
    Hello,
    Loaded,
    Message,
    Ping,
    Pong,
    Refused,
    Welcome,
    decode,
    encode,
)
from edgepp.wire.transport import Address, Sender
from tests.unit.test_director import SIZE, Want
from tests.wire import KEYS, messages

CPU_S = 2.0
BYTES = 16 << 20
WIDTH = 8
DRIVER, GUEST = Sender(b"driver", KEYS[0], "10.0.0.1"), Sender(b"guest", KEYS[1], "10.0.0.2")
WELCOME = Welcome(
    "n", 1, 5721, "m", "f" * 16, "", 0, 4, 4, WIDTH, 64, "onnx", "cpu", "float32", False, 8, 1, 1, 1, rewinds=True
)
_QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextmanager
def ceiling() -> Iterator[None]:
    """Fail where what is done takes more processor time or memory than any message may."""
    tracemalloc.start()
    began_s = time.thread_time()
    try:
        yield
        spent_s, (_, peak) = time.thread_time() - began_s, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert spent_s < CPU_S
    assert peak < BYTES


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


class FakeListener:
    """A socket whose messages the test puts in and takes out."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Sender, list[memoryview]]] = []
        self.sent: list[tuple[bytes, Message]] = []
        self.socket = None

    def put(self, sender: Sender, frames: Sequence[bytes]) -> None:
        self.waiting.append((sender, [memoryview(frame) for frame in frames]))

    def receive_from(self) -> tuple[Sender, list[memoryview]] | None:
        return self.waiting.pop(0) if self.waiting else None

    def receive(self) -> tuple[bytes, list[memoryview]] | None:
        received = self.receive_from()
        return None if received is None else (received[0].route, received[1])

    def send(self, route: bytes, frames: Sequence[bytes | memoryview]) -> bool:
        self.sent.append((route, decode(frames[0])))
        return True

    def close(self) -> None:
        """Nothing is open."""


class FakeModel:
    """Layers that return what they are given; sequence lengths are kept as a real cache would."""

    hidden_size, dtype, kv_bytes, chunk, rewinds = WIDTH, "float32", 0, 8, True

    def __init__(self) -> None:
        self.lengths: dict[int, int] = {}
        self.broken = False

    def open(self, sequence: int, capacity: int) -> None:
        self.lengths[sequence] = 0

    def fork(self, source: int, sequence: int, length: int, capacity: int) -> None:
        self.lengths[sequence] = length

    def resize(self, sequence: int, capacity: int) -> None:
        """Room costs nothing here."""

    def free(self, sequence: int) -> None:
        del self.lengths[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        self.lengths[sequence] = length

    def length(self, sequence: int) -> int:
        return self.lengths[sequence]

    def extend(self, sequence: int, hidden: Any) -> Any:
        if self.broken:
            raise ZeroDivisionError("a bug of ours")
        self.lengths[sequence] += len(hidden)
        return hidden

    def decode(self, sequences: Sequence[int], hidden: Any) -> Any:
        for sequence in sequences:
            self.lengths[sequence] += 1
        return hidden


class Stage:
    """Control and compute of one stage, driven by hand."""

    def __init__(self) -> None:
        self.model = FakeModel()
        self.data, self.listener = FakeListener(), FakeListener()
        self.compute = Compute(Worker(self.model, 64), self.data)  # type: ignore[arg-type]
        gate = SimpleNamespace(admits=lambda key: key in KEYS)
        joiner = SimpleNamespace(begin=lambda attempt: self.compute.inbox.put(Joined(attempt)), close=lambda: None)
        self.control = Control(self.listener, gate, self.compute, joiner, WELCOME, DRIVER.key)  # type: ignore[arg-type]

    def order(self, sender: Sender, *frames: bytes) -> list[Message]:
        """Everything that one control message brings about; what is answered to it."""
        self.listener.put(sender, frames)
        self.control.receive()
        self.work()
        answers = [message for route, message in self.listener.sent if route == sender.route]
        self.listener.sent.clear()
        return answers

    def work(self) -> None:
        for command in self.compute.inbox.drain():
            if command is not None:
                self.compute.obey(command)
        for route, message in self.compute.outbox.drain():
            self.listener.send(route, [encode(message)])

    def feed(self, frame: Forward | Batch, hidden: Any) -> None:
        self.data.put(GUEST, [encode(frame), np.asarray(hidden, np.float32).tobytes()])
        self.compute.receive()

    def faults(self) -> list[Fault]:
        return [message for _, message in self.compute.outbox.drain() if isinstance(message, Fault)]

    def close(self) -> None:
        self.compute.close()
        self.compute.inbox.close()
        self.compute.outbox.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


ATTACH = Attach(1, 0, "", "", b"c1".hex(), "none", 0)


def forward(sequence: int, position: int = 0, rows: int = 1) -> Forward:
    return Forward(1, sequence, 0, position, 64, 0, 1, rows, WIDTH, "float32", "none", ())


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
    """A frame of the epoch and width that the stage knows."""
    assert isinstance(message, Forward | Batch)
    return encode(message._replace(epoch=1, width=WIDTH))


_TENSORS = st.lists(PAYLOADS | st.binary(min_size=32, max_size=32), max_size=2)


@given(st.lists(st.tuples(HEADERS | messages(Forward, Batch).map(_ours), _TENSORS), max_size=5))
@_QUICK
def test_a_stages_compute_survives_any_message(said: list[tuple[bytes, list[bytes]]]) -> None:
    with closing(Stage()) as stage:
        stage.order(DRIVER, encode(ATTACH))
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
    for message in (Detach(1), Free(1, 1)):
        assert isinstance(stage.order(GUEST, encode(message))[0], Refused)
    assert stage.order(DRIVER, encode(Ping(1)))[0].known  # type: ignore[union-attr]
    assert not stage.order(GUEST, encode(Ping(1)))[0].known  # type: ignore[union-attr]
    assert isinstance(stage.order(GUEST, encode(Hello("x")))[0], Welcome)


def test_without_keys_an_epoch_belongs_to_the_host_that_attached_it(stage: Stage) -> None:
    one, other = Sender(b"one", "", "10.0.0.1"), Sender(b"other", "", "10.0.0.2")
    assert isinstance(stage.order(one, encode(ATTACH))[0], Attached)
    for message in (ATTACH, Detach(1), Free(1, 1)):
        (refused,) = stage.order(other, encode(message))
        assert isinstance(refused, Refused)
        assert "another's" in refused.reason
    assert stage.order(one, encode(Ping(1)))[0].known  # type: ignore[union-attr]


def test_the_epochs_of_one_driver_are_bounded(stage: Stage) -> None:
    answers = [stage.order(DRIVER, encode(ATTACH._replace(epoch=epoch)))[0] for epoch in range(MOST_EPOCHS_OF_ONE + 5)]
    assert [type(answer) for answer in answers].count(Attached) == MOST_EPOCHS_OF_ONE
    assert isinstance(answers[-1], Refused)
    stage.order(DRIVER, encode(Detach(0)))
    assert isinstance(stage.order(DRIVER, encode(ATTACH._replace(epoch=99)))[0], Attached)


def test_an_attempt_that_was_given_up_leaves_no_ring(stage: Stage) -> None:
    attempt = Attempt(b"driver", ATTACH, given_up=True)
    stage.compute.obey(Joined(attempt))
    assert stage.compute._rings == {}


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
    assert stage.compute.worker.sequences == 1


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    def no_pipeline(*_: Any) -> Any:
        raise EdgeppError("there is no pipeline")

    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    identity = load_identity()
    cluster = new_cluster(identity)
    cluster = cluster.__class__(cluster.id, cluster.coordinator, (Member.of("mini", GUEST.key),))
    serving = SimpleNamespace(
        pipeline=None, reason="", model="m", acquire=no_pipeline, keep=lambda _: None, shut=lambda _: None
    )
    director = Director(Want(SIZE, context=1024, slots=1), "m", False, identity.node, kv_bits=0, base=1000)
    made = Coordinator(identity, cluster, Address("127.0.0.1", 0), director, serving, lambda _: None)  # type: ignore[arg-type]
    yield made
    made._outbox.put(None)
    made.run()


@given(st.lists(st.tuples(st.sampled_from([DRIVER, GUEST]), MESSAGES), max_size=5))
@_QUICK
def test_a_coordinator_survives_any_message(coordinator: Coordinator, said: list[tuple[Sender, list[bytes]]]) -> None:
    for sender, frames in said:
        with ceiling():
            try:
                coordinator.take(sender, [memoryview(frame) for frame in frames])
            except RemoteProtocolError:
                continue
    coordinator._tick(time.monotonic())
    assert coordinator.registry.node_of(GUEST.key)


@pytest.mark.parametrize("message", [Answered(1), WELCOME, Loaded(1, 0, 1, 1, "", "", 1, 1, 1, 1), ATTACH])
def test_a_stranger_and_a_wrong_role_change_nothing(coordinator: Coordinator, message: Message) -> None:
    version = coordinator.members.version
    for sender in (DRIVER, GUEST):
        coordinator.take(sender, [memoryview(encode(message))])
    assert coordinator.members.version == version
