"""What one connection may take: real sockets on loopback, and the rules alone."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import zmq

from edgepp.wire import guard as module
from edgepp.wire.guard import LEAST_BACKLOG_BYTES, MOST_SILENT, Guard, raise_descriptor_limit
from edgepp.wire.security import Gate, KeyPair, Pinned
from edgepp.wire.transport import Address, Link, Listener
from tests.waiting import eventually

FRAME_BYTES = 1 << 16
PATIENCE_S = 20
SERVER, MEMBER = KeyPair.generate(), KeyPair.generate()
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


class Place:
    """One listener with its gate, encrypted or not."""

    def __init__(self, *, encrypted: bool) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.gate = Gate(self.context, lambda *_: None)
        self.gate.admit([MEMBER.public])
        self.encrypted = encrypted
        self.listener = Listener(self.context, Address("127.0.0.1", 0), FRAME_BYTES, SERVER if encrypted else None)

    def link(self) -> Link:
        pinned = Pinned(MEMBER, SERVER.public) if self.encrypted else None
        return Link(self.context, self.listener.address, FRAME_BYTES, None, pinned)

    def hears(self, link: Link) -> bool:
        """Whether a short message comes through."""
        assert link.send([b"hello"], PATIENCE_S)
        assert self.listener.socket.poll(PATIENCE_S * 1000, zmq.POLLIN)
        received = self.listener.receive()
        return received is not None and bytes(received[1][0]) == b"hello"


@contextmanager
def opened(*, encrypted: bool) -> Iterator[Place]:
    made = Place(encrypted=encrypted)
    try:
        yield made
    finally:
        made.listener.close()
        made.gate.close()
        made.context.term()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why connections were shut down."""
    reasons: list[str] = []
    end = Guard._end

    def noted(self: Guard, descriptor: int, why: str) -> None:
        reasons.append(why)
        end(self, descriptor, why)

    monkeypatch.setattr(Guard, "_end", noted)
    return reasons


@pytest.mark.parametrize("part_bytes", [0, 60_000])
def test_a_plain_message_of_endless_parts_is_cut_off(part_bytes: int, ended: list[str]) -> None:
    header = b"\x01\x00" if not part_bytes else b"\x03" + part_bytes.to_bytes(8, "big")
    block = (header + bytes(part_bytes)) * (60_000 // (part_bytes + 2) or 1)
    with opened(encrypted=False) as place, socket.create_connection(("127.0.0.1", place.listener.address.port)) as raw:
        raw.sendall(GREETING)
        for _ in range(len(GREETING)):
            assert raw.recv(1)
        ready = b"\5READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
        raw.sendall(bytes([4, len(ready)]) + ready)
        raw.settimeout(PATIENCE_S)
        with suppress(OSError):  # it is cut off
            for _ in range((1 << 30) // len(block)):
                raw.sendall(block)
        eventually("it came", lambda: not len(place.listener._guard))
        assert len(ended) == 1
        link = place.link()
        assert place.hears(link)
        link.close()


def test_a_members_message_of_too_many_parts_is_cut_off(ended: list[str]) -> None:
    with opened(encrypted=True) as place:
        link, other = place.link(), place.link()
        assert place.hears(link)
        assert place.hears(other)
        link.socket.send_multipart([bytes(60_000)] * 700)
        eventually("it came", lambda: ended)
        assert place.hears(other)
        assert place.listener.receive() is None
        link.close()
        other.close()


@pytest.mark.parametrize("encrypted", [False, True])
def test_messages_that_are_read_may_be_any_number(ended: list[str], *, encrypted: bool) -> None:
    with opened(encrypted=encrypted) as place:
        link = place.link()
        for _ in range(3 * LEAST_BACKLOG_BYTES // 60_000):
            assert link.send([b"header", bytes(60_000)], PATIENCE_S)
            assert place.listener.socket.poll(PATIENCE_S * 1000, zmq.POLLIN)
            assert place.listener.receive() is not None
        (connection,) = place.listener._guard._connections.values()
        assert connection.taken > 3 * LEAST_BACKLOG_BYTES * 0.9
        eventually("it came", lambda: place.listener._guard._checked_s)
        assert ended == []
        link.close()


def test_what_a_listener_sends_unasked_is_bounded(ended: list[str]) -> None:
    with opened(encrypted=True) as place:
        link = place.link()
        assert link.send([b"hello"], PATIENCE_S)
        assert place.listener.socket.poll(PATIENCE_S * 1000, zmq.POLLIN)
        received = place.listener.receive()
        assert received is not None
        for _ in range(4 * LEAST_BACKLOG_BYTES // 60_000):
            place.listener.send(received[0].route, [bytes(60_000)])
        eventually("it came", lambda: link.look() or ended)  # nobody reads the link
        link.close()


def test_whole_messages_that_nobody_reads_are_bounded_too(ended: list[str]) -> None:
    with opened(encrypted=True) as place:
        link = place.link()
        for _ in range(4 * LEAST_BACKLOG_BYTES // 60_000):
            link.send([b"header", bytes(60_000)], 0.05)
        eventually("it came", lambda: ended)
        link.close()


def test_half_handshakes_leave_room_for_others() -> None:
    with opened(encrypted=True) as place, ExitStack() as held:
        for _ in range(3 * MOST_SILENT):
            raw = held.enter_context(socket.create_connection(("127.0.0.1", place.listener.address.port)))
            raw.sendall(GREETING[:10])
        eventually("it came", lambda: 0 < len(place.listener._guard) <= MOST_SILENT + 1)
        link = place.link()
        assert place.hears(link)
        link.close()


def test_the_host_with_most_silent_connections_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[int] = []
    monkeypatch.setattr(module, "_duplicate", lambda descriptor: (gone.append(descriptor), socket.socket())[1])
    guard = Guard(0)
    guard.port = 1
    guard.accepted(1, "10.0.0.1", 0.0)
    guard.accepted(2, "10.0.0.9", 0.0)
    guard.taken(2, 1, 5)
    for descriptor in range(3, 3 + 2 * MOST_SILENT):
        guard.accepted(descriptor, "10.0.0.9", 1.0)
    assert 1 not in gone
    assert 2 not in gone
    assert gone == list(range(3, 3 + len(gone)))
    assert len(guard._silent) == MOST_SILENT


def test_the_soft_limit_of_descriptors_is_raised_again() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 900), before[1]))
        raise_descriptor_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(1 << 16, hard if hard != resource.RLIM_INFINITY else 1 << 16)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
