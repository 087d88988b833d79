"""Deadlines that no real stage can be made to miss on purpose: a fake stage answers every ping and never computes.

The fake stands in because a wedged compute thread beside a live control thread cannot be had from a healthy process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from edgepp.engine import network_ring
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.ring import Failed, Send
from edgepp.engine.stage_handshake import Endpoint, Expectation
from edgepp.errors import StageLost
from edgepp.wire.mailbox import Poller
from edgepp.wire.messages import Attach, Attached, Echo, Hello, Message, Ping, Pong, Welcome, decode, encode
from edgepp.wire.transport import Address, Listener
from tests.waiting import eventually

HERE = Address("127.0.0.1", 0)
EXPECTED = Expectation("m", "f" * 16, 4, 8, exact=False)


class WedgedStage(threading.Thread):
    """Says that it holds all layers, joins any ring, answers pings, swallows hidden states."""

    def __init__(self, **changes: object) -> None:
        super().__init__(name="control", daemon=True)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.control = Listener(self._context, HERE, 1 << 16)
        self._data = Listener(self._context, HERE, 1 << 20)
        self._stopping = threading.Event()
        self._busy_us = 0
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
                    reader.send(sender.route, [encode(answer), *frames[1:]])

    def _answer(self, message: Message) -> Message | None:
        match message:
            case Hello():
                return self._welcome
            case Attach():
                return Attached(message.epoch, 10, 0)
            case Ping():
                return Pong(message.epoch, True, self._busy_us, 0, 0, 0, 0)
            case Echo():
                return message._replace(reply=True)
            case _:
                self._busy_us = 1
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
    monkeypatch.setattr(network_ring, "STEP_S", 1.5)
    ring = NetworkRing([Endpoint((wedged.control.address,))], EXPECTED, "test")
    try:
        ring.send(Send(1, 0, 16, 1, np.zeros((4, 8), np.float32)))
        began = time.monotonic()
        (failed,) = eventually("it counts as lost", lambda: ring.poll(0.1))
        assert time.monotonic() - began > 1.4
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, StageLost)
        assert "stage 0 (layers 0-3) on node fake" in str(failed.error)
        assert "wedged" in str(failed.error)
    finally:
        ring.close()


def test_an_idle_ring_misses_no_deadline(wedged: WedgedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_ring, "STEP_S", 0.0)
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
        ring._polled_s -= 60
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
