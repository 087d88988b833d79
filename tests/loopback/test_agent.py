"""A node and its coordinator: orders, how the node leaves or is expelled, and reports after a lost link."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar
from unittest.mock import Mock

import psutil
import pytest
import zmq

from edgepp.cluster.discovery import network_interfaces
from edgepp.cluster.discovery.mdns import Announcer
from edgepp.cluster.identity import Cluster, Identity, PairedNode, load_identity
from edgepp.cluster.pairing.server import PairingServer
from edgepp.coordinator import join_endpoint
from edgepp.errors import PairingError
from edgepp.events import CoordinatorLost, Woke
from edgepp.host_system import sleep_inhibitor
from edgepp.host_system.sleep_inhibitor import SleepInhibitor
from edgepp.node import agent
from edgepp.node.agent import NodeAgent
from edgepp.node.offer import Offer
from edgepp.node.resources import Resources
from edgepp.wire.address import Address
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import MAX_PAYLOAD_BYTES, Message
from edgepp.wire.messages.nodes import (
    Drained,
    Enrol,
    Enrolled,
    Expelled,
    Heartbeat,
    HeartbeatAck,
    Leave,
    Leaving,
    Load,
    Loaded,
    NotLoaded,
    Restart,
    Unload,
)
from edgepp.wire.security import Gate, KeyPair
from edgepp.wire.transport import Listener
from tests.waiting import PATIENCE_S, eventually

M = TypeVar("M", bound=Message)
SECRET = KeyPair.generate().secret
RESOURCES = Resources(1 << 30, "onnx", "cpu", 1, 1e9, 1e9, 1e-5)


class FakeCoordinator:
    """What a node takes for its coordinator: it answers heartbeats, and else what the test says."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.working = False
        self._route = b""

    def hear(self, kind: type[M]) -> M:
        """Wait for a message of this kind."""

        def look() -> M | None:
            received = self.listener.receive()
            if received is None:
                return None
            self._route, message = received[0].route, decode(received[1][0])
            if isinstance(message, Heartbeat):
                self.say(encode(HeartbeatAck(True, 0, self.working)))
            return message if isinstance(message, kind) else None

        return eventually(f"the node says {kind.__name__}", look)

    def say(self, header: bytes) -> None:
        assert self.listener.send(self._route, [header])


@pytest.fixture
def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Identity:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    return load_identity()


@pytest.fixture
def coordinator(identity: Identity) -> Iterator[FakeCoordinator]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context)
    gate.admit([identity.keys.public])
    keys = KeyPair.of_secret(SECRET)
    listener = Listener(context, Address("127.0.0.1", 0), MAX_PAYLOAD_BYTES, keys)
    yield FakeCoordinator(listener)
    listener.close()
    gate.close()
    context.term()


@pytest.fixture
def node(identity: Identity, coordinator: FakeCoordinator) -> Iterator[NodeAgent]:
    cluster = Cluster("ab" * 8, PairedNode.of("one", KeyPair.of_secret(SECRET).public))
    address = coordinator.listener.address
    made = NodeAgent(identity, cluster, Offer(RESOURCES, 1 << 30), lambda: [address], lambda _: None)
    made.start()
    yield made
    made.close()


def in_force(coordinator: FakeCoordinator) -> None:
    coordinator.hear(Enrol)
    coordinator.say(encode(Enrolled("ab" * 8, "one")))
    coordinator.hear(Heartbeat)


@pytest.mark.parametrize("begin", [in_force, lambda coordinator: coordinator.hear(Enrol)], ids=["member", "enrolling"])
def test_a_node_that_is_expelled_says_leave_and_ends(
    coordinator: FakeCoordinator, node: NodeAgent, begin: Callable[[FakeCoordinator], None]
) -> None:
    begin(coordinator)
    coordinator.say(encode(Expelled("one ended the cluster")))
    coordinator.hear(Leave)
    assert node.ended.wait(PATIENCE_S)
    assert isinstance(node.error, PairingError)
    assert str(node.error) == "one: one ended the cluster"


def test_a_node_that_cannot_understand_its_coordinator_ends(coordinator: FakeCoordinator, node: NodeAgent) -> None:
    coordinator.hear(Enrol)
    coordinator.say(b"not a message")
    assert node.ended.wait(PATIENCE_S)
    assert node.error is not None


@pytest.fixture
def refusing() -> Iterator[Address]:
    """Where somebody listens who has another key than the coordinator."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context)
    listener = Listener(context, Address("127.0.0.1", 0), MAX_PAYLOAD_BYTES, KeyPair.generate())
    yield listener.address
    listener.close()
    gate.close()
    context.term()


def test_a_refusal_where_a_stranger_may_have_announced_the_coordinator_ends_no_node(
    identity: Identity, coordinator: FakeCoordinator, refusing: Address
) -> None:
    cluster = Cluster("ab" * 8, PairedNode.of("one", KeyPair.of_secret(SECRET).public))
    announced, sure, events = [refusing], [], []  # type: ignore[var-annotated]
    made = NodeAgent(
        identity, cluster, Offer(RESOURCES, 1 << 30), lambda: [*announced, *sure], events.append,
        sure_addresses=lambda: list(sure),
    )  # fmt: skip
    made.start()
    try:
        eventually("it has searched in vain", lambda: events or made.ended.is_set())
        assert isinstance(events[0], CoordinatorLost)
        announced.append(coordinator.listener.address)
        in_force(coordinator)
    finally:
        made.close()
    assert made.error is None


def test_a_refusal_at_a_remembered_address_ends_a_node(identity: Identity, refusing: Address) -> None:
    cluster = Cluster("ab" * 8, PairedNode.of("one", KeyPair.of_secret(SECRET).public))
    places = [refusing]
    made = NodeAgent(
        identity, cluster, Offer(RESOURCES, 1 << 30), lambda: places, Mock(), sure_addresses=lambda: places
    )
    made.start()
    assert made.ended.wait(PATIENCE_S)
    made.close()
    assert isinstance(made.error, PairingError)


def test_a_report_that_no_connection_takes_is_told_later(identity: Identity) -> None:
    cluster = Cluster("ab" * 8, PairedNode.of("one", KeyPair.of_secret(SECRET).public))
    events: list[object] = []
    node = NodeAgent(identity, cluster, Offer(RESOURCES, 1 << 30), list, events.append)
    reports = [NotLoaded(1, slot, "it ended by itself", "") for slot in range(2)]
    for report in reports:
        node._outbox.put(report)
    told: list[object] = []
    taken = iter([False, True, False, True])

    def send(frames: list[bytes]) -> bool:
        if sent := next(taken):
            told.append(decode(frames[0]))
        return sent

    for expected in ([], reports[:1], reports):
        node._send_reports(SimpleNamespace(send=send))  # type: ignore[arg-type]
        assert told == expected
    assert len(events) == 2
    node._outbox.close()
    node._context.term()


def test_a_stage_process_is_restarted_on_the_order_of_the_coordinator(
    coordinator: FakeCoordinator, node: NodeAgent, tiny: Path
) -> None:
    in_force(coordinator)
    coordinator.say(encode(Load(5, 0, str(tiny), 0, 2, False, 0)))
    first = coordinator.hear(Loaded)
    coordinator.say(encode(Restart(5, 0, first.pid)))
    coordinator.say(encode(Restart(5, 9, first.pid)))  # a slot that the node does not have
    assert coordinator.hear(NotLoaded).restarting
    assert coordinator.hear(Loaded).pid != first.pid


def load_layers(coordinator: FakeCoordinator, model: Path) -> Loaded:
    """Have a member load two layers."""
    in_force(coordinator)
    coordinator.say(encode(Load(5, 0, str(model), 0, 2, False, 0)))
    return coordinator.hear(Loaded)


@pytest.fixture
def draining(node: NodeAgent) -> Iterator[Callable[[], threading.Thread]]:
    """Begins to drain the node, in a thread."""
    given_up, threads = threading.Event(), []

    def begin() -> threading.Thread:
        threads.append(threading.Thread(target=node.drain, args=(given_up,)))
        threads[0].start()
        return threads[0]

    yield begin
    given_up.set()
    for thread in threads:
        thread.join()


Draining = Callable[[], threading.Thread]


def test_a_node_that_leaves_runs_its_stage_until_the_coordinator_has_moved_its_layers(
    coordinator: FakeCoordinator, node: NodeAgent, tiny: Path, draining: Draining
) -> None:
    stage = load_layers(coordinator, tiny)
    waiting = draining()
    told = coordinator.hear(Leaving)
    assert coordinator.hear(Leaving) == told  # again, since a message may be lost
    coordinator.say(encode(Drained(told.incarnation + 1)))  # to an earlier process of the node
    coordinator.hear(Heartbeat)
    assert waiting.is_alive()
    assert psutil.pid_exists(stage.pid)
    coordinator.say(encode(Drained(told.incarnation)))
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert node.has_layers
    closing = threading.Thread(target=node.close)
    closing.start()
    assert coordinator.hear(Leave).incarnation == told.incarnation
    closing.join(PATIENCE_S)
    assert not psutil.pid_exists(stage.pid)


def test_a_node_without_layers_leaves_at_once(coordinator: FakeCoordinator, node: NodeAgent) -> None:
    in_force(coordinator)
    assert not node.has_layers
    node.drain(threading.Event())


def test_a_node_whose_layers_were_taken_waits_no_longer(
    coordinator: FakeCoordinator, node: NodeAgent, tiny: Path, draining: Draining
) -> None:
    load_layers(coordinator, tiny)
    waiting = draining()
    coordinator.hear(Leaving)
    coordinator.say(encode(Unload(6, 0)))
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


@pytest.mark.parametrize("why", ["time is over", "closed"])
def test_a_node_waits_for_its_coordinator_no_longer_than_it_has_to(
    coordinator: FakeCoordinator,
    node: NodeAgent,
    tiny: Path,
    draining: Draining,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    load_layers(coordinator, tiny)
    if why == "time is over":
        monkeypatch.setattr(agent, "DRAIN_S", 0.0)
    waiting = draining()
    coordinator.hear(Leaving)
    if why == "closed":
        node.close()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


def test_a_node_that_does_not_reach_its_coordinator_leaves_at_once(
    coordinator: FakeCoordinator, node: NodeAgent, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_layers(coordinator, tiny)
    monkeypatch.setattr(agent, "COORDINATOR_SILENCE_S", -1.0)
    node.drain(threading.Event())
    assert node.has_layers


def test_a_node_is_kept_awake_while_the_coordinator_has_answers(
    identity: Identity, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster("ab" * 8, PairedNode.of("one", KeyPair.of_secret(SECRET).public))
    address = coordinator.listener.address
    offer = Offer(RESOURCES, 1 << 30)
    lock = SleepInhibitor(commands=lambda: [["cat"]])
    node = NodeAgent(identity, cluster, offer, lambda: [address], lambda _: None, sleep=lock)
    monkeypatch.setattr(sleep_inhibitor, "LINGER_S", 0.5)
    node.start()
    try:
        in_force(coordinator)
        coordinator.working = True
        coordinator.hear(Heartbeat)
        assert coordinator.hear(Heartbeat).sleep_lock == "released", "the node has no layers"
        monkeypatch.setattr(NodeAgent, "has_layers", property(lambda _: True))

        def says(state: str) -> bool:
            return coordinator.hear(Heartbeat).sleep_lock == state

        eventually("the machine is kept awake", lambda: says("held"))
        (child,) = [one for one in psutil.Process().children() if one.name() == "cat"]
        coordinator.working = False
        eventually("the machine may sleep", lambda: says("released"))
        assert not child.is_running()
        coordinator.working = True
        eventually("the machine is kept awake", lambda: says("held"))
    finally:
        node.close()
    assert "cat" not in [one.name() for one in psutil.Process().children()]


def test_a_node_that_slept_connects_again_at_once(
    identity: Identity, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept_s = 0.0
    clock = SimpleNamespace(time=lambda: 1e9 + slept_s, monotonic=lambda: 50.0)
    monkeypatch.setattr(network_interfaces, "time", clock)
    monkeypatch.setattr(network_interfaces, "usable_addresses", tuple)  # those of this machine may change meanwhile
    monkeypatch.setattr(agent, "COORDINATOR_SILENCE_S", 10 * PATIENCE_S)  # silence is not what makes it connect
    cluster = Cluster("ab" * 8, PairedNode.of("one", KeyPair.of_secret(SECRET).public))
    address = coordinator.listener.address
    events: list[object] = []
    announced = threading.Event()
    node = NodeAgent(identity, cluster, Offer(RESOURCES, 1 << 30), lambda: [address], events.append, announced.set)
    node.start()
    try:
        in_force(coordinator)
        slept_s = 3600.0
        in_force(coordinator)
        assert announced.is_set(), "the browser of multicast DNS begins again"
        (woke,) = [event for event in events if isinstance(event, Woke)]
        assert woke.slept_s == 3600.0
    finally:
        node.close()


def test_a_coordinator_that_slept_announces_itself_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s = 0.0
    clock = SimpleNamespace(time=lambda: 1e9 + slept_s, monotonic=lambda: 50.0)
    monkeypatch.setattr(network_interfaces, "time", clock)
    monkeypatch.setattr(network_interfaces, "usable_addresses", tuple)  # those of this machine may change meanwhile
    announcer, pairing_server = Mock(spec=Announcer), Mock(spec=PairingServer)
    pairing_server.numbers.return_value = ()
    monkeypatch.setattr(join_endpoint, "Announcer", lambda *_: announcer)
    monkeypatch.setattr(join_endpoint, "PairingServer", lambda *_: pairing_server)
    identity = SimpleNamespace(node="ab" * 8, name="one", id="cd" * 8)
    endpoint = join_endpoint.JoinEndpoint(identity, Address("*", 5700), lambda: identity, print, print)
    endpoint.announce()
    announcer.refresh.assert_not_called()
    slept_s = 3600.0
    endpoint.announce()
    announcer.refresh.assert_called_once_with()
