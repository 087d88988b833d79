"""Greeting all stages of a ring at the same time; a context that ends shows that no link was left open."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import zmq

from edgepp.engine.stage_handshake import Endpoint, greet_all
from edgepp.errors import PlanError
from edgepp.wire.address import Address
from edgepp.wire.mailbox import Poller
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.control import Refused
from edgepp.wire.transport import Listener
from tests.stages import WELCOME
from tests.waiting import PATIENCE_S


class Stages:
    """Three control sockets; those whose number is in ``refusing`` refuse, and none answers before all are asked."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.listeners = [Listener(self.context, Address("127.0.0.1", 0), 1 << 16) for _ in range(3)]
        self.refusing: set[int] = set()
        self._thread = threading.Thread(target=self._run)
        self._stopping = threading.Event()

    @property
    def endpoints(self) -> list[Endpoint]:
        return [Endpoint((listener.address,)) for listener in self.listeners]

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        poller = Poller[None](*self.listeners)
        asked: dict[int, bytes] = {}
        while len(asked) < 3 and not self._stopping.is_set():
            for reader in poller.wait(0.05):
                assert isinstance(reader, Listener)
                received = reader.receive()
                assert received is not None
                asked[self.listeners.index(reader)] = received[0].route
        for number, route in asked.items():
            answer = Refused(f"stage {number} is busy") if number in self.refusing else WELCOME
            self.listeners[number].send(route, [encode(answer)])

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(PATIENCE_S)
        for listener in self.listeners:
            listener.close()
        self.context.term()


@pytest.fixture
def stages() -> Iterator[Stages]:
    made = Stages()
    yield made
    made.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    ending = threading.Thread(target=made.term)
    ending.start()
    ending.join(PATIENCE_S)
    assert not ending.is_alive(), "a link was left open"


def test_stages_are_greeted_at_the_same_time(stages: Stages, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    stages.start()
    peers = greet_all(context, stages.endpoints, "test")
    assert [peer.address for peer in peers] == [listener.address for listener in stages.listeners]
    for peer in peers:
        peer.control.close()


def test_a_stage_that_refuses_leaves_no_link_to_the_others(
    stages: Stages, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    stages.refusing = {1, 2}
    stages.start()
    with pytest.raises(PlanError, match="stage 1 is busy"):
        greet_all(context, stages.endpoints, "test")
