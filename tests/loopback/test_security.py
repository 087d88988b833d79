"""Encrypted sockets on loopback: admitted keys exchange messages, all others are refused; both sides learn why."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq

from edgepp.errors import LocalProtocolError, RemoteProtocolError, UsageError
from edgepp.wire import log_sampler, security
from edgepp.wire.address import Address
from edgepp.wire.security import BROKEN_OFF, OTHER_SERVER_KEY, PLAIN, Gate, KeyPair, Pinned
from edgepp.wire.text_fields import is_key
from edgepp.wire.transport import Link, Listener, Sender
from tests.waiting import PATIENCE_S, eventually

HERE = Address("127.0.0.1", 0)
FRAME_BYTES = 1 << 16
SERVER, MEMBER, STRANGER = (KeyPair.generate() for _ in range(3))


class Place:
    """One encrypted listener and its gate, in a context of their own."""

    def __init__(self, address: Address = HERE) -> None:
        self.refused: list[tuple[str, str]] = []
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.gate = Gate(self.context, lambda host, why: self.refused.append((host, why)))
        self.gate.admit([MEMBER.public])
        self.listener = Listener(self.context, address, FRAME_BYTES, SERVER)

    def link(self, own: KeyPair = MEMBER, server: str = SERVER.public) -> Link:
        return Link(
            self.context, Address("127.0.0.1", self.listener.address.port), FRAME_BYTES, None, Pinned(own, server)
        )

    def receive(self) -> tuple[Sender, list[bytes]]:
        assert self.listener.socket.poll(int(PATIENCE_S * 1000), zmq.POLLIN)
        received = self.listener.receive_even_revoked()
        assert received is not None
        return received[0], [bytes(frame) for frame in received[1]]


@pytest.fixture
def place() -> Iterator[Place]:
    with opened() as made:
        yield made


@contextmanager
def opened(address: Address = HERE) -> Iterator[Place]:
    made = Place(address)
    try:
        yield made
    finally:
        made.listener.close()
        made.gate.close()
        made.context.term()


@contextmanager
def closing(link: Link) -> Iterator[Link]:
    try:
        yield link
    finally:
        link.close()


def wait(condition: Callable[[], object]) -> None:
    eventually("it came", condition)


def test_a_secret_is_never_shown() -> None:
    assert MEMBER.secret not in repr(MEMBER)
    assert MEMBER.secret not in repr(Pinned(MEMBER, SERVER.public))
    assert KeyPair.of_secret(MEMBER.secret) == MEMBER


@pytest.mark.parametrize("text", ["", "a" * 39, "a" * 41, "#" * 40, "ä" * 40, "a" * 39 + "\n", "a" * 39 + " "])
def test_what_is_no_key(text: str) -> None:
    assert not is_key(text)
    assert is_key(MEMBER.public)


def test_an_admitted_key_talks_and_is_told_apart(place: Place) -> None:
    with closing(place.link()) as link:
        assert link.send([b"header", b"x" * 5000], PATIENCE_S)
        sender, frames = place.receive()
        assert (sender.key, sender.host, frames) == (MEMBER.public, "127.0.0.1", [b"header", b"x" * 5000])
        assert place.listener.send(sender.route, [b"answer"])
        assert [bytes(frame) for frame in link.receive(PATIENCE_S) or []] == [b"answer"]
        assert link.refusal() is None
    assert place.refused == []


def test_a_stranger_is_refused_and_comes_in_once_it_is_admitted(place: Place) -> None:
    with closing(place.link(STRANGER)) as link:
        wait(link.refusal)
        assert "does not admit this node's key" in str(link.refusal())
        wait(lambda: place.refused)
        assert place.refused[0] == ("127.0.0.1", STRANGER.public)
        assert not link.send([b"let me in"])
        place.gate.admit([MEMBER.public, STRANGER.public])
        assert place.gate.admits(STRANGER.public)
        wait(lambda: link.send([b"thanks"]))
        assert place.receive()[0].key == STRANGER.public
        wait(lambda: link.refusal() is None)


def test_a_key_that_is_no_longer_admitted_stays_out(place: Place) -> None:
    place.gate.admit([])
    with closing(place.link()) as link:
        wait(link.refusal)
        assert not place.gate.admits(MEMBER.public)


def test_a_connection_from_before_a_revocation_is_useless(place: Place) -> None:
    with closing(place.link()) as link:
        assert link.send([b"one"], PATIENCE_S)
        assert place.listener.socket.poll(PATIENCE_S * 1000, zmq.POLLIN)
        received = place.listener.receive()
        assert received is not None
        place.gate.admit([])
        assert link.send([b"two"], PATIENCE_S)
        assert place.listener.socket.poll(PATIENCE_S * 1000, zmq.POLLIN)
        with pytest.raises(RemoteProtocolError, match="whose key was revoked"):
            place.listener.receive()
        place.gate.admit([MEMBER.public])
        assert link.send([b"three"], PATIENCE_S)
        assert place.receive()[1] == [b"three"]


def test_another_server_key_is_noticed_on_both_sides(place: Place) -> None:
    with closing(place.link(server=STRANGER.public)) as link:
        wait(link.refusal)
        assert "its key is another one" in str(link.refusal())
        wait(lambda: place.refused)
        assert place.refused[0][1] == OTHER_SERVER_KEY


def test_a_plain_client_is_refused(place: Place) -> None:
    with closing(Link(place.context, place.listener.address, FRAME_BYTES)) as link:
        wait(lambda: place.refused)
        host, why = place.refused[0]
        assert host in ("127.0.0.1", security._UNKNOWN)  # where it was gone before we could look
        assert why in (PLAIN, BROKEN_OFF)  # by which side noticed first
        assert not link.send([b"hello"])


def test_a_plain_listener_is_not_talked_to() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    listener = Listener(context, HERE, FRAME_BYTES)
    link = Link(context, listener.address, FRAME_BYTES, None, Pinned(MEMBER, SERVER.public))
    try:
        wait(link.refusal)
        assert "does not encrypt" in str(link.refusal())
        assert not link.send([b"secret"])
        assert listener.receive() is None
    finally:
        link.close()
        listener.close()
        context.term()


def test_keys_without_a_gate_are_a_mistake() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with pytest.raises(LocalProtocolError, match="gate"):
        Listener(context, HERE, FRAME_BYTES, SERVER)
    context.term()


def test_gate_and_listeners_may_be_closed_in_any_order() -> None:
    place = Place()
    with closing(place.link(STRANGER)) as link:
        place.gate.close()
        wait(link.refusal)
        place.listener.close()
    place.context.term()
    wait(lambda: not any(thread.name == "gate" for thread in threading.enumerate()))


def test_a_flood_of_strangers_is_logged_in_powers_of_ten(caplog: pytest.LogCaptureFixture) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context)
    with caplog.at_level(logging.WARNING, "edgepp"):
        for _ in range(150):
            gate._report("10.0.0.9", STRANGER.public)
            gate._report("10.0.0.9", PLAIN)
        for number in range(5 * log_sampler.MAX_SOURCES):
            gate._report(f"10.1.0.{number}", PLAIN)
    gate.close()
    context.term()
    lines = [record.getMessage() for record in caplog.records]
    assert sum("10.0.0.9" in line for line in lines) == 6
    assert f"refused 10.0.0.9: its key {STRANGER.public} is not one of this cluster" in lines
    assert len(lines) < log_sampler.MAX_SOURCES + 10


def test_a_plain_stranger_cannot_claim_a_key() -> None:
    """Anyone may send a User-Id in the metadata of a plain handshake."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    listener = Listener(context, HERE, FRAME_BYTES)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    claims = {b"Socket-Type": b"DEALER", b"User-Id": MEMBER.public.encode()}
    ready = b"\5READY" + b"".join(
        bytes([len(name)]) + name + struct.pack(">I", len(value)) + value for name, value in claims.items()
    )
    try:
        with socket.create_connection(("127.0.0.1", listener.address.port)) as raw:
            raw.sendall(greeting)
            for _ in range(len(greeting)):  # libzmq wants to have spoken before it reads on
                assert raw.recv(1)
            raw.sendall(bytes([4, len(ready)]) + ready + b"\0\5hello")
            assert listener.socket.poll(int(PATIENCE_S * 1000), zmq.POLLIN)
            received = listener.receive_even_revoked()
        assert received is not None
        assert (received[0].key, received[0].host) == ("", "127.0.0.1")
    finally:
        listener.close()
        context.term()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "host", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 here"))]
)
def test_every_interface(host: str) -> None:
    with opened(Address("*", 0)) as place:
        assert place.listener.address.host == "*"
        link = Link(
            place.context, Address(host, place.listener.address.port), FRAME_BYTES, None, Pinned(MEMBER, SERVER.public)
        )
        with closing(link):
            assert link.send([b"hello"], PATIENCE_S)
            assert place.receive()[0].host == host


def test_garbage_at_the_gate_is_survived(place: Place) -> None:
    for junk in (b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", bytes(200)):
        with socket.create_connection(("127.0.0.1", place.listener.address.port)) as raw:
            raw.sendall(junk)
    with closing(place.link()) as link:
        assert link.send([b"still there?"], PATIENCE_S)
        assert place.receive()[1] == [b"still there?"]


def test_a_context_ends_at_once_after_an_address_was_taken() -> None:
    """Whether or not the thread of the gate has taken the listener over by then."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        for _ in range(30):
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            gate = Gate(context)
            with pytest.raises(UsageError, match="cannot listen"):
                Listener(context, address, 1 << 20, KeyPair.generate())
            gate.close()
            ending = threading.Thread(target=context.term, daemon=True)
            ending.start()
            ending.join(PATIENCE_S)
            assert not ending.is_alive()
