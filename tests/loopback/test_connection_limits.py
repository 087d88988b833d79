"""Limits on connections: with real sockets on loopback, and with faked byte counts."""

from __future__ import annotations

import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import psutil
import pytest
import zmq

from edgepp.wire import connection_limits as module
from edgepp.wire.address import Address
from edgepp.wire.connection_limits import (
    MAX_BACKLOGS_PER_PEER,
    MAX_CONNECTIONS,
    MAX_SILENT_CONNECTIONS,
    MIN_BACKLOG_BYTES,
    ConnectionLimiter,
    raise_descriptor_limit,
)
from edgepp.wire.security import Gate, KeyPair, Pinned
from edgepp.wire.transport import Link, Listener
from tests.waiting import PATIENCE_S, eventually

FRAME_BYTES = 1 << 16
FLOOD_S = 20.0
"""How long connections send without end, unless they are cut off before."""
CEILING_BYTES = 500 << 20
"""Without a limit on the sum, sixty connections took more than 2 GB."""
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

    def stranger(self) -> socket.socket:
        """A connection that has greeted as a plain DEALER does."""
        raw = socket.create_connection(("127.0.0.1", self.listener.address.port), PATIENCE_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.sendall(GREETING)
        for _ in range(len(GREETING)):
            assert raw.recv(1)
        ready = b"\5READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
        raw.sendall(bytes([4, len(ready)]) + ready)
        return raw

    def hears(self, link: Link) -> bool:
        """Whether a short message comes through."""
        assert link.send([b"hello"], PATIENCE_S)
        assert self.listener.socket.poll(int(PATIENCE_S * 1000), zmq.POLLIN)
        received = self.listener.receive()
        return received is not None and bytes(received[1][0]) == b"hello"


def parts_of(part_bytes: int) -> bytes:
    """One frame of a message with more frames, in ZMTP's encoding."""
    header = b"\x01" + bytes([part_bytes]) if part_bytes < 256 else b"\x03" + part_bytes.to_bytes(8, "big")
    return header + bytes(part_bytes)


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
    """Reasons of the connections that were shut down."""
    reasons: list[str] = []
    end = ConnectionLimiter._end

    def noted(self: ConnectionLimiter, descriptor: int, why: str) -> None:
        reasons.append(why)
        end(self, descriptor, why)

    monkeypatch.setattr(ConnectionLimiter, "_end", noted)
    return reasons


@pytest.mark.parametrize("part_bytes", [0, 60_000])
def test_a_plain_message_of_endless_frames_is_cut_off(part_bytes: int, ended: list[str]) -> None:
    block = parts_of(part_bytes) * (60_000 // (part_bytes + 2) or 1)
    with opened(encrypted=False) as place, place.stranger() as raw:
        with suppress(OSError):  # it is cut off
            for _ in range((1 << 30) // len(block)):
                raw.sendall(block)
        eventually("it came", lambda: not len(place.listener._limiter))
        assert len(ended) == 1
        link = place.link()
        assert place.hears(link)
        link.close()


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_longest_frame_passes(*, encrypted: bool) -> None:
    with opened(encrypted=encrypted) as place:
        link = place.link()
        assert place.hears(link)
        assert link.send([bytes(FRAME_BYTES)], PATIENCE_S)
        assert place.listener.socket.poll(int(PATIENCE_S * 1000), zmq.POLLIN)
        received = place.listener.receive()
        assert received is not None
        assert len(received[1][0]) == FRAME_BYTES
        link.close()


def test_a_members_message_of_too_many_frames_is_cut_off(ended: list[str]) -> None:
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


ABRUPTLY = struct.pack("ii", 1, 0)
PING = b"\x04\x07\x04PING" + bytes(2)


@pytest.mark.parametrize("last", [PING, b""])
def test_a_flood_that_breaks_off_before_it_was_read_leaves_the_process_alive(last: bytes) -> None:
    with opened(encrypted=False) as place:
        raw = place.stranger()
        raw.sendall(b"\0\1a" * 1500 + last)
        eventually("it came", lambda: place.listener._limiter._connections)
        limiter = place.listener._limiter
        eventually("it arrived", lambda: sum(limiter._received(number) or 0 for number in limiter._connections) > 4500)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABRUPTLY)
        raw.close()
        eventually("its end was seen", lambda: not len(place.listener._limiter))
        while place.listener.socket.poll(0, zmq.POLLIN):
            place.listener.receive()
        link = place.link()
        assert place.hears(link)
        link.close()


def test_one_peers_connections_are_bounded_together(ended: list[str]) -> None:
    with opened(encrypted=True) as place, ExitStack() as held:
        links = [held.enter_context(closing(place.link())) for _ in range(20)]
        for link in links:
            assert place.hears(link)
        for link in links:
            for _ in range(MIN_BACKLOG_BYTES // 2 // 60_000):
                assert link.send([bytes(60_000)], PATIENCE_S)
        eventually("their sum was seen", lambda: len(ended) >= len(links) - 2 * MAX_BACKLOGS_PER_PEER)
        assert all("the backlogs of its peer" in reason for reason in ended)


@pytest.mark.parametrize("part_bytes", [0, 1, 40])
def test_the_memory_of_many_connections_with_endless_small_frames_is_bounded(part_bytes: int) -> None:
    """libzmq keeps at least 64 bytes per frame, whatever the size of the frame."""
    process, block = psutil.Process(), parts_of(part_bytes) * (20_000 // (part_bytes + 2))
    with opened(encrypted=False) as place, ExitStack() as held:
        strangers = {held.enter_context(closing(place.stranger())) for _ in range(60)}
        before = most = process.memory_info().rss
        for raw in strangers:
            raw.setblocking(False)
        until_s = time.monotonic() + FLOOD_S
        while strangers and time.monotonic() < until_s:
            for raw in list(strangers):
                try:
                    raw.send(block)
                except BlockingIOError:
                    continue
                except OSError:  # it is cut off
                    strangers.remove(raw)
            most = max(most, process.memory_info().rss)
        assert most - before < CEILING_BYTES


def _limiter(monkeypatch: pytest.MonkeyPatch, received: dict[int, int]) -> tuple[ConnectionLimiter, list[int]]:
    """A limiter whose connections have received these bytes, and the list of descriptors that it shuts down."""
    gone: list[int] = []
    monkeypatch.setattr(module, "_duplicate", lambda descriptor: (gone.append(descriptor), socket.socket())[1])
    limiter = ConnectionLimiter(0)
    monkeypatch.setattr(limiter, "_received", received.get)
    limiter.port = 1
    return limiter, gone


HALF = MIN_BACKLOG_BYTES // 2


def test_the_sum_counts_for_a_key_from_many_networks_and_a_network_of_many_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received = dict.fromkeys(range(10), HALF + 1000)
    limiter, gone = _limiter(monkeypatch, received)
    for number in range(5):
        limiter.add(number, f"10.0.0.{number}")
        limiter.count_taken(number, 0, 0, MEMBER.public)
    for number in range(5, 10):
        limiter.add(number, f"2001:db8::{number}")
    limiter.check(1.0)
    assert len([number for number in gone if number < 5]) == 2
    assert len([number for number in gone if number >= 5]) == 2


def test_messages_taken_before_their_connection_is_reported_are_no_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    received = {0: 3 * MIN_BACKLOG_BYTES}
    limiter, gone = _limiter(monkeypatch, received)
    limiter.count_taken(0, 0, 3 * MIN_BACKLOG_BYTES, "")
    limiter.add(0, "10.0.0.1")
    limiter.check(1.0)
    assert gone == []
    received[0] += MIN_BACKLOG_BYTES + 1000
    limiter.check(2.0)
    assert gone == [0]


def test_the_sum_of_all_peers_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter, gone = _limiter(monkeypatch, dict.fromkeys(range(12), HALF + 1000))
    for number in range(12):
        limiter.add(number, f"10.0.0.{number}")
    limiter.check(1.0)
    assert len(gone) == 5


def test_a_peer_with_a_small_backlog_is_not_cut_off_for_one_with_a_large_backlog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received = {0: HALF, **dict.fromkeys(range(1, 12), HALF)}
    limiter, gone = _limiter(monkeypatch, received)
    limiter.add(0, "10.0.0.1")
    for number in range(1, 12):
        limiter.add(number, "10.0.0.9")
    limiter.check(1.0)
    assert 0 not in gone
    assert len(gone) >= 7


def test_the_key_with_most_connections_gives_way_to_a_newcomer(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter, gone = _limiter(monkeypatch, {})
    limiter.add(0, "10.0.0.9")
    limiter.count_taken(0, 1, 5, SERVER.public)
    for number in range(1, MAX_CONNECTIONS + 3):
        limiter.add(number, "10.0.0.9")
        limiter.count_taken(number, 1, 5, MEMBER.public)
    assert gone == [1, 2, 3][: len(gone)]
    assert gone


@pytest.mark.parametrize("encrypted", [False, True])
def test_messages_that_are_read_may_be_any_number(ended: list[str], *, encrypted: bool) -> None:
    with opened(encrypted=encrypted) as place:
        link = place.link()
        for _ in range(3 * MIN_BACKLOG_BYTES // 60_000):
            assert link.send([b"header", bytes(60_000)], PATIENCE_S)
            assert place.listener.socket.poll(int(PATIENCE_S * 1000), zmq.POLLIN)
            assert place.listener.receive() is not None
        eventually("the connection was reported", lambda: place.listener._limiter._connections)
        (connection,) = place.listener._limiter._connections.values()
        assert connection.taken_bytes > 3 * MIN_BACKLOG_BYTES * 0.9
        eventually("it came", lambda: place.listener._limiter._checked_s)
        assert ended == []
        link.close()


def test_what_a_listener_sends_unasked_is_bounded(ended: list[str]) -> None:
    with opened(encrypted=True) as place:
        link = place.link()
        assert link.send([b"hello"], PATIENCE_S)
        assert place.listener.socket.poll(int(PATIENCE_S * 1000), zmq.POLLIN)
        received = place.listener.receive()
        assert received is not None
        for _ in range(4 * MIN_BACKLOG_BYTES // 60_000):
            place.listener.send(received[0].route, [bytes(60_000)])
        eventually("it came", lambda: link.enforce_limits() or ended)  # nobody reads the link
        link.close()


def test_whole_messages_that_nobody_reads_are_bounded_too(ended: list[str]) -> None:
    with opened(encrypted=True) as place:
        link = place.link()
        eventually("it is cut off", lambda: ended or (link.send([b"header", bytes(60_000)], 0.05) and ended))
        link.close()


def test_half_handshakes_leave_room_for_others() -> None:
    with opened(encrypted=True) as place, ExitStack() as held:
        for _ in range(3 * MAX_SILENT_CONNECTIONS):
            raw = held.enter_context(socket.create_connection(("127.0.0.1", place.listener.address.port)))
            raw.sendall(GREETING[:10])
        eventually("it came", lambda: 0 < len(place.listener._limiter) <= MAX_SILENT_CONNECTIONS + 1)
        link = place.link()
        assert place.hears(link)
        link.close()


def test_the_host_with_most_silent_connections_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter, gone = _limiter(monkeypatch, {})
    limiter.add(1, "10.0.0.1")
    limiter.add(2, "10.0.0.9")
    limiter.count_taken(2, 1, 5, "")
    for descriptor in range(3, 3 + 2 * MAX_SILENT_CONNECTIONS):
        limiter.add(descriptor, "10.0.0.9")
    assert 1 not in gone
    assert 2 not in gone
    assert gone == list(range(3, 3 + len(gone)))
    assert len(limiter._silent) == MAX_SILENT_CONNECTIONS


def test_the_soft_limit_of_descriptors_is_raised_again() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 900), before[1]))
        raise_descriptor_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(1 << 16, hard if hard != resource.RLIM_INFINITY else 1 << 16)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
