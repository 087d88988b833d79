"""Links to next stages: the compute thread waits neither for a dead address nor for a next stage with a full queue."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import zmq

from edgepp.errors import PeerLost
from edgepp.stage_process import frame_sender
from edgepp.stage_process import next_stage as joining
from edgepp.stage_process.next_stage import MAX_CONNECT_ATTEMPTS, ConnectAttempt, NextStageConnector, NextStageLink
from edgepp.wire import happy_eyeballs
from edgepp.wire.address import Address
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Attach, Attached, FrameLost, Refused, Unreached
from edgepp.wire.messages.data import Echo
from edgepp.wire.transport import Listener
from tests.builders.networks import two_networks
from tests.stages import ATTACH, DRIVER, WIDTH, Stage, forward
from tests.waiting import PATIENCE_S
from tests.wire import KEYS

ONWARD = Attach(2, 0, "10.0.0.9:5720", KEYS[2], b"c1".hex(), "none", 0, KEYS[1])
ROW = np.ones((1, WIDTH))


class Network:
    """Stand-in for the network between two stages: no address answers until the test lets the attempt end."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.given_up: list[bool] = []

    def connect_first(self, *_: Any, given_up: Callable[[], bool]) -> Any:
        while not self.may_end.wait(0.01):
            if given_up():
                break
        self.given_up.append(given_up())
        raise PeerLost("nobody is there")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network()
    monkeypatch.setattr(joining, "connect_first", made.connect_first)
    monkeypatch.setattr(joining, "pinned", lambda *_: None)
    return made


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    connector = NextStageConnector(context, None, 32, 1 << 16, made.compute.inbox.put, made.compute.outbox)
    made.control._connector = connector
    yield made
    connector.close()
    made.close()
    context.term()


def answers(stage: Stage) -> list[Message]:
    stage.work()
    said = [message for _, message in stage.listener.sent]
    stage.listener.sent.clear()
    return said


def test_frames_are_computed_while_an_attach_waits_for_a_dead_address(stage: Stage, network: Network) -> None:
    assert isinstance(stage.order(DRIVER, encode(ATTACH))[0], Attached)
    assert stage.order(DRIVER, encode(ONWARD)) == []
    for position in range(3):
        stage.feed(forward(1, position), ROW)
    assert len(stage.data.sent) == 3
    network.may_end.set()
    for thread in stage.control._connector._threads:
        thread.join()
    assert answers(stage) == [Unreached(ONWARD.epoch, "nobody is there")]


def test_connect_attempts_are_bounded_and_close_gives_them_up(stage: Stage, network: Network) -> None:
    for epoch in range(2, 2 + MAX_CONNECT_ATTEMPTS):
        assert stage.order(DRIVER, encode(ONWARD._replace(epoch=epoch))) == []
    (refused,) = stage.order(DRIVER, encode(ONWARD._replace(epoch=99)))
    assert isinstance(refused, Refused)
    assert "already" in refused.reason
    stage.control._connector.close()
    assert network.given_up == [True] * MAX_CONNECT_ATTEMPTS


@contextmanager
def echoing(host: str) -> Iterator[tuple[zmq.Context[zmq.Socket[bytes]], int, list[int]]]:
    """A stage that only returns echoes: its context, its port, and the sizes of the echoes in order."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    following = Listener(context, Address(host, 0), 1 << 20)
    ended, sizes = threading.Event(), list[int]()

    def echo() -> None:
        while not ended.is_set():
            if following.socket.poll(10, zmq.POLLIN) and (received := following.receive()) is not None:
                sender, (header, *tensor) = received
                message: Any = decode(header)
                sizes.append(sum(map(len, tensor)))
                following.send(sender.route, [encode(message._replace(reply=True)), *tensor])

    thread = threading.Thread(target=echo)
    thread.start()
    try:
        yield context, following.address.port, sizes
    finally:
        ended.set()
        thread.join()
        following.close()
        context.term()


def joined_at(addresses: str, stage: Stage, context: zmq.Context[zmq.Socket[bytes]]) -> NextStageLink:
    """The link to the next stage at one of ``addresses``."""
    handed: list[NextStageLink] = []
    connector = NextStageConnector(context, None, 32, 1 << 16, handed.append, stage.compute.outbox)
    connector.begin(ConnectAttempt(b"driver", ONWARD._replace(next_addresses=addresses, next_key="")))
    for one in connector._threads:
        one.join()
    (joined,) = handed
    return joined


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is a loopback address on Linux only")
def test_of_two_networks_the_fastest_is_taken_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = two_networks(monkeypatch)
    stage = Stage()
    with echoing("0.0.0.0") as (context, port, sizes):  # noqa: S104 - both addresses of loopback
        joined = joined_at(f"127.0.0.1:{port},127.0.0.2:{port}", stage, context)
        assert joined.link is not None
        assert {address.host for address in measured} == {"127.0.0.1", "127.0.0.2"}
        best = min(measured.values(), key=lambda echoes: echoes.short_s + echoes.long_s)
        assert measured[joined.link.address] == best
        assert (joined.echo_s, joined.bytes_per_s) == (best.short_s, best.bytes_per_s)
        assert sizes.count(max(sizes)) == 2 * 2, "two long echoes by each of the networks"
        joined.link.close()
        stage.close()


def test_a_link_is_made_and_handed_over() -> None:
    stage = Stage()
    with echoing("127.0.0.1") as (context, port, _):
        joined = joined_at(f"127.0.0.1:{port}", stage, context)
        assert joined.link is not None
        assert joined.echo_s > 0
        assert joined.bytes_per_s > 0
        stage.compute.execute(joined)
        assert [type(message) for message in answers(stage)] == [Attached]
        stage.close()


def test_names_are_resolved_before_libzmq_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq would resolve names in the thread that serves all connections."""
    lookup, asked = socket.getaddrinfo, []

    def known(host: str, *rest: Any, **options: Any) -> Any:
        if host == "mini.local":
            asked.append(host)
            return [*lookup("127.0.0.2", *rest, **options), *lookup("127.0.0.1", *rest, **options)]
        if host == "gone.local":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return lookup(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", known)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    following = Listener(context, Address("127.0.0.1", 0), 1 << 20)
    port = following.address.port

    def welcome() -> bool:
        while (received := following.receive()) is not None:
            following.send(received[0].route, [b"welcome"])
        return False

    try:
        names = [Address("gone.local", port), Address("mini.local", port)]
        link, frames = connect_first(context, names, Echo(1, reply=False), PATIENCE_S, 1 << 20, given_up=welcome)
        assert (link.address, bytes(frames[0])) == (Address("127.0.0.1", port), b"welcome")
        assert asked == ["mini.local"]
        link.close()
        with pytest.raises(PeerLost, match=r"gone\.local"):
            connect_first(context, names[:1], Echo(1, reply=False), PATIENCE_S, 1 << 20)
    finally:
        following.close()
        context.term()


def test_however_many_addresses_there_are_each_is_tried_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(happy_eyeballs, "_STAGGER_S", 2 * PATIENCE_S)  # as with many addresses that lead nowhere
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    right = Listener(context, Address("127.0.0.1", 0), 1 << 20)
    silent = [Listener(context, Address("127.0.0.1", 0), 1 << 20) for _ in range(3)]

    def welcome() -> bool:
        while (received := right.receive()) is not None:
            right.send(received[0].route, [b"welcome"])
        return False

    places = [*(one.address for one in silent), right.address]
    link, _ = connect_first(context, places, Echo(1, reply=False), 4.0, 1 << 20, given_up=welcome)
    assert link.address == right.address
    link.close()
    for one in (right, *silent):
        one.close()
    context.term()


class FullLink:
    """A link to a next stage whose queue is full until the test sets ``takes``."""

    def __init__(self) -> None:
        self.takes = False
        self.sent: list[Any] = []

    def send(self, parts: Any, _: float = 0.0) -> bool:
        if self.takes:
            self.sent.append(decode(parts[0]))
        return self.takes

    def close(self) -> None:
        """Nothing is open."""


def test_a_next_stage_with_a_full_queue_delays_no_other_ring(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    link = FullLink()
    stage.order(DRIVER, encode(ATTACH))
    stage.compute.execute(NextStageLink(ConnectAttempt(b"driver", ONWARD), link))  # type: ignore[arg-type]
    onward = [forward(1, position)._replace(epoch=2, until=1) for position in range(3)]
    for frame in onward:
        stage.feed(frame, ROW)
        stage.feed(forward(7, frame.position), ROW)
    assert len(stage.data.sent) == 3
    stage.compute._sender.retry_unsent()
    assert link.sent == []
    link.takes = True
    stage.compute._sender.retry_unsent()
    assert [frame.position for frame in link.sent] == [0, 1, 2]
    assert not stage.compute._sender.is_congested
    link.takes = False
    monkeypatch.setattr(frame_sender, "SEND_WAIT_S", -1.0)
    stage.feed(forward(1, 3)._replace(epoch=2, until=1), ROW)
    stage.compute._sender.retry_unsent()
    assert FrameLost(2, 1) in [message for _, message in stage.compute.outbox.drain()]
    assert stage.compute.runner.lengths(2) == {1: 4}  # for the ring that replaces this one
