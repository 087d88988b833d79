"""Deadlines and answers that no real stage can be made to get wrong, against a fake stage.

The fake stands in because a healthy process cannot have a wedged compute thread and a live control thread at once.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zmq

from edgepp.engine import network_ring, outstanding_steps
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.plan_check import Expectation
from edgepp.engine.ring import Failed, ResultKind, Returned, RingEvent, Send, SendBatch
from edgepp.engine.stage_handshake import Endpoint, StageUnreached
from edgepp.errors import StageLost
from edgepp.wire import codec
from edgepp.wire.address import Address
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Attach, Attached, Free, Hello, Ping, Pong, Unreached, Welcome
from edgepp.wire.messages.data import Batch, Echo, Forward, Hidden
from edgepp.wire.transport import Listener
from tests.waiting import PATIENCE_S, eventually

HERE = Address("127.0.0.1", 0)
ROW = np.ones((1, 8), np.float32)
EXPECTED = Expectation("m", "f" * 16, 4, 8, exact=False, vocabulary=100)


class WedgedStage(threading.Thread):
    """A stage that claims all layers, joins any ring, answers pings, and never answers hidden states."""

    def __init__(self, **changes: object) -> None:
        super().__init__(name="control", daemon=True)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.control = Listener(self._context, HERE, 1 << 16)
        self._data = Listener(self._context, HERE, 1 << 20)
        self._stopping = threading.Event()
        self._busy_us = 0
        self._num_answers = 0
        """Answers to hidden states in the present ring, lost ones included."""
        port = self._data.address.port
        welcome = Welcome(
            "fake", 1, port, "m", "f" * 16, "", 0, 4, 4, 8, 64, "onnx", "cpu", "float32", False, 8, 1, 100, 100, True
        )
        self._welcome = welcome._replace(**changes)  # type: ignore[arg-type]

    def run(self) -> None:
        poller = Poller[None](self.control, self._data)
        while not self._stopping.is_set():
            for reader in poller.wait(0.05):
                assert isinstance(reader, Listener)
                received = reader.receive()
                assert received is not None
                sender, frames = received
                answer = self._answer(decode(frames[0]))
                if answer is not None:
                    rows = len(answer.sequences) if isinstance(answer, Batch) else None
                    tensor = [frame[: rows and rows * ROW.nbytes] for frame in frames[1:]]
                    if isinstance(answer, Hidden | Batch):
                        answer = answer._replace(checksum=codec.checksum(tensor), serial=self._num_answers)
                        self._num_answers += 1
                    reader.send(sender.route, [encode(answer), *tensor])

    def _answer(self, message: Message) -> Message | None:
        match message:
            case Hello():
                return self._welcome
            case Attach():
                self._num_answers = 0
                return Attached(message.epoch, 10, 0)
            case Ping():
                return Pong(message.epoch, True, self._busy_us, 0, 0, 0, 0, 0, 7, 9, 1)
            case Echo():
                return message._replace(reply=True)
            case Forward() | Batch():
                self._busy_us = 1
                return self.computed(message)
            case _:
                return None

    def computed(self, message: Forward | Batch) -> Message | None:
        """What it answers to hidden states, with the same tensor."""
        return None

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        self.control.close()
        self._data.close()
        self._context.term()


@pytest.fixture
def wedged() -> Iterator[WedgedStage]:
    stage = WedgedStage()
    stage.start()
    yield stage
    stage.stop()


def test_a_wedged_stage_is_named_within_its_deadline(wedged: WedgedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outstanding_steps, "STEP_S", 0.7)
    ring = NetworkRing([Endpoint((wedged.control.address,))], EXPECTED, "test")
    try:
        began = time.monotonic()
        ring.send(Send(1, 0, 16, 1, np.zeros((4, 8), np.float32)))
        (failed,) = eventually("it counts as lost", lambda: ring.poll(0.1))
        assert time.monotonic() - began > 1.3
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, StageLost)
        assert "stage 0 (layers 0-3) on node fake" in str(failed.error)
        assert "wedged" in str(failed.error)
    finally:
        ring.close()


class CutOffStage(WedgedStage):
    """A first stage whose machine cannot reach the next stage, as the coordinator can."""

    def _answer(self, message: Message) -> Message | None:
        if isinstance(message, Attach):
            return Unreached(message.epoch, "no edgepp node answers there")
        return super()._answer(message)


def test_a_link_that_a_stage_cannot_make_is_named_with_both_ends_and_its_port() -> None:
    first, last = CutOffStage(node="one", stop=2), WedgedStage(node="two", start=2)
    endpoints = [Endpoint((stage.control.address,)) for stage in (first, last)]
    for stage in (first, last):
        stage.start()
    try:
        with pytest.raises(StageUnreached, match=r"layers 0-1 on node one .* cannot reach port") as raised:
            NetworkRing(endpoints, EXPECTED, "test")
    finally:
        for stage in (first, last):
            stage.stop()
    port = last._welcome.data_port
    assert raised.value.link == tuple(endpoints)
    assert f"port {port} of the stage with layers 2-3 on node two" in str(raised.value)
    assert raised.value.hint == f"allow edgepp in the firewall of two: its port {port} has to be open for one"


class LyingStage(WedgedStage):
    """A stage that answers each step with the message that the test chooses."""

    def __init__(self, lie: Callable[[Hidden | Batch], Message]) -> None:
        super().__init__(decode_us=(1 << 48) - 1)
        self._lie = lie

    def computed(self, message: Forward | Batch) -> Message | None:
        if isinstance(message, Batch):
            return self._lie(message._replace(compute_us=(1,)))
        width, dtype, name = message.width, message.dtype, message.codec
        return self._lie(Hidden(message.epoch, message.sequence, message.step, 1, width, dtype, name, (1,)))


STEP, BATCH = Send(1, 0, 16, 1, ROW), SendBatch((1, 2), (1, 1), np.ones((2, 8), np.float32))


def events_of(
    step: Send | SendBatch, lie: Callable[[Any], Message], times: int = 1, *, awake: bool = False
) -> list[RingEvent]:
    """The events of a ring with one lying stage after one step, or several."""
    stage = LyingStage(lie)
    stage.start()
    ring = NetworkRing([Endpoint((stage.control.address,))], EXPECTED, "test")
    ring.is_awake = awake
    events: list[RingEvent] = []
    try:
        for _ in range(times):
            ring.send(step)
        while len(events) < times and not any(isinstance(event, Failed) for event in events):
            events += eventually("something comes back", lambda: ring.poll(0.1))
    finally:
        ring.close()
        stage.stop()
    return events


def test_an_answer_of_the_right_rows_is_taken() -> None:
    (one,) = events_of(STEP, lambda answer: answer)
    (two,) = events_of(BATCH, lambda answer: answer)
    assert isinstance(one, Returned)
    assert isinstance(two, Returned)
    assert (one.sequences, two.sequences) == ((1,), (1, 2))


@pytest.mark.parametrize("stated_us", [1, 1 << 62])
def test_a_stage_cannot_have_computed_for_longer_than_its_step_was_away(stated_us: int) -> None:
    """What stages state counts in metrics and in the choice of chunks, where one lie would be there for ever."""
    began_s = time.perf_counter()
    (event,) = events_of(STEP, lambda answer: answer._replace(compute_us=(stated_us,)))
    assert isinstance(event, Returned)
    assert 0 < event.compute_s[0] <= (1e-6 if stated_us == 1 else time.perf_counter() - began_s)


def test_an_engine_that_waits_awake_takes_results_orders_and_what_stages_say(
    wedged: WedgedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_ring, "AWAKE_S", PATIENCE_S)
    (one,) = events_of(STEP, lambda answer: answer, awake=True)
    assert isinstance(one, Returned)
    (failed,) = events_of(STEP, lambda answer: answer._replace(rows=0), awake=True)
    assert isinstance(failed, Failed)
    ring = NetworkRing([Endpoint((wedged.control.address,))], EXPECTED, "test")
    ring.is_awake = True
    with closing(ring), closing(Mailbox[str]()) as orders:
        ring.wake_on(orders)
        ring.send(STEP)
        threading.Timer(0.01, orders.put, ["stop"]).start()
        while not (taken := orders.drain()):
            assert ring.poll(PATIENCE_S) == []
        assert taken == ["stop"]
        eventually("the stage has answered a ping", lambda: ring.poll(0.05) or ring.stage_stats()[0].reconnects)


@pytest.mark.parametrize(
    ("step", "lie"),
    [
        (STEP, lambda answer: answer._replace(sequence=2)),
        (STEP, lambda answer: answer._replace(rows=0)),
        (STEP, lambda answer: Batch(answer.epoch, answer.step, (1,), (0,), *answer[4:])),
        (BATCH, lambda answer: answer._replace(sequences=(1, 3))),
        (BATCH, lambda answer: Hidden(answer.epoch, 1, answer.step, 2, *answer[4:-2])),
    ],
)
def test_an_answer_to_another_step_or_sequence_loses_the_stage(
    step: Send | SendBatch, lie: Callable[[Any], Message]
) -> None:
    (failed,) = events_of(step, lie)
    assert isinstance(failed, Failed)
    assert "broke the protocol: an answer to a step" in str(failed.error)


@pytest.mark.parametrize(
    ("kind", "width", "dtype"),
    [
        (ResultKind("candidates", 2), 8, "float32"),
        (ResultKind("candidates", 2), 5, "bfloat16"),
        (ResultKind("logits"), 8, "float32"),
        (ResultKind("logits"), 100, "float16"),
        (ResultKind(), 100, "float32"),
    ],
)
def test_a_result_in_another_form_loses_the_stage(kind: ResultKind, width: int, dtype: str) -> None:
    for step in (replace(STEP, result=kind), replace(BATCH, result=kind)):
        (failed,) = events_of(step, lambda answer: answer._replace(width=width, dtype=dtype))
        assert isinstance(failed, Failed)
        assert "broke the protocol" in str(failed.error)


def test_a_step_is_answered_once() -> None:
    events = events_of(BATCH, lambda answer: answer._replace(step=0, sequences=(1,), positions=(1,)), times=2)
    assert isinstance(events[-1], Failed)
    assert "answered already" in str(events[-1].error)


def test_rows_that_never_come_back_lose_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outstanding_steps, "STEP_S", 1.0)
    stage = LyingStage(
        lambda answer: answer if isinstance(answer, Hidden) else answer._replace(sequences=(2,), positions=(1,))
    )
    stage.start()
    ring = NetworkRing([Endpoint((stage.control.address,))], EXPECTED, "test")
    try:
        ring.send(BATCH)
        failed = None
        while not isinstance(failed, Failed):
            ring.send(replace(STEP, sequence=3))
            failed = next((event for event in ring.poll(0.1) if isinstance(event, Failed)), None)
        assert "left out a part of an answer" in str(failed.error)
    finally:
        ring.close()
        stage.stop()


class LosingStage(WedgedStage):
    """A stage whose answer to step 1 is lost on its way; with ``skips``, the stage does not compute that step."""

    def __init__(self, *, skips: bool) -> None:
        super().__init__()
        self._skips = skips

    def computed(self, message: Forward | Batch) -> Message | None:
        assert isinstance(message, Forward)
        if message.step == 1:
            self._num_answers += not self._skips
            return None
        return Hidden(message.epoch, message.sequence, message.step, 1, 8, "float32", "none", (5,))


@pytest.mark.parametrize(
    ("skips", "sequence", "error"),
    [
        (False, 1, "an answer of stage 0 .* was lost on its way"),
        (False, 2, "an answer of stage 0 .* was lost on its way"),
        (True, 1, "none to an earlier step of the same sequence"),
    ],
)
def test_no_answer_is_taken_for_the_lost_one_before_it(skips: bool, sequence: int, error: str) -> None:
    """Steps of one sequence follow each other where guesses are in flight, and their tokens are told by their order."""
    stage = LosingStage(skips=skips)
    stage.start()
    ring = NetworkRing([Endpoint((stage.control.address,))], EXPECTED, "test")
    try:
        for position, of in enumerate((1, sequence, 1)):
            ring.send(replace(STEP, sequence=of, position=position))
        events: list[RingEvent] = []
        while not (events and isinstance(events[-1], Failed)):
            events += ring.poll(0.1)
        first, failed = events
        assert isinstance(first, Returned)
        assert isinstance(failed, Failed)
        assert re.search(error, str(failed.error))
    finally:
        ring.close()
        stage.stop()


def test_a_stage_that_calls_itself_slow_still_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outstanding_steps, "STEP_S", 0.1)
    monkeypatch.setattr(outstanding_steps, "MAX_STEP_S", 1.0)
    (failed,) = events_of(STEP, lambda answer: Free(0, 0))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, StageLost)


def test_an_idle_ring_misses_no_deadline(wedged: WedgedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outstanding_steps, "STEP_S", 0.0)
    ring = NetworkRing([Endpoint((wedged.control.address,))], EXPECTED, "test")
    try:
        for _ in range(3):
            assert ring.poll(0.1) == []
    finally:
        ring.close()


def test_a_coordinator_that_slept_does_not_blame_the_stages(wedged: WedgedStage) -> None:
    ring = NetworkRing([Endpoint((wedged.control.address,))], EXPECTED, "test")
    try:
        ring.poll(0.1)
        ring._watch._looked_s -= 60
        ring._peers[0].heard_s -= 60
        assert ring.poll(0.1) == []
    finally:
        ring.close()


@pytest.mark.parametrize(
    "changes", [{"start": 3, "stop": 2}, {"stop": 9}, {"data_port": 0}, {"data_port": 1 << 20}], ids=str
)
def test_a_stage_that_describes_itself_absurdly_is_refused(changes: dict[str, int]) -> None:
    stage = WedgedStage(**changes)
    stage.start()
    try:
        with pytest.raises(StageLost, match="welcome message has a"):
            NetworkRing([Endpoint((stage.control.address,))], EXPECTED, "test")
    finally:
        stage.stop()


def test_a_first_stage_that_has_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_ring, "_SEND_S", 10 * PATIENCE_S)
    stage = WedgedStage()
    stage.start()
    ring = NetworkRing([Endpoint((stage.control.address,))], EXPECTED, "test")
    try:
        stage.stop()
        for position in range(3):  # a step may go before the end of the connection is known
            ring.send(Send(1, position, 16, 1, ROW))
        (failed,) = eventually("it counts as lost", lambda: [one for one in ring.poll(0.1) if isinstance(one, Failed)])
        assert "nothing listens at its port" in str(failed.error)
    finally:
        ring.close()
