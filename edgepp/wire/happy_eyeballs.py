"""Connecting to a peer with several addresses: the first address that answers is used (Happy Eyeballs, RFC 8305).

A machine has addresses that other machines cannot reach (a VPN, a container bridge, the other IP version), so all
addresses are tried, each ``_STAGGER_S`` after the one before, or sooner where there are many: all within half the time.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence

import zmq

from edgepp.errors import EdgeppError, PairingError, PeerLost, UsageError
from edgepp.wire.address import Address
from edgepp.wire.message_codec import encode
from edgepp.wire.messages import Message
from edgepp.wire.security import Pinned
from edgepp.wire.transport import Link

log = logging.getLogger("edgepp.wire")

_POLL_MS = 5
_STAGGER_S = 0.25


def connect_first(
    context: zmq.Context[zmq.Socket[bytes]],
    addresses: Sequence[Address],
    message: Message,
    wait_s: float,
    max_frame_bytes: int,
    pinned: Pinned | None = None,
    payload: bytes | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> tuple[Link, list[memoryview]]:
    """Send ``message`` and ``payload`` to all ``addresses``; return the link of the first answer, and its frames.

    The other links are closed. ``max_frame_bytes`` bounds a frame of an answer.

    Raises:
        PairingError: No address answers, and one refused the handshake, with the reason.
        PeerLost: No address answers within ``wait_s`` seconds, or before ``given_up()`` is true.
        RemoteProtocolError: The first answer has too many frames.
    """
    waiting = list(dict.fromkeys(addresses))
    links: list[Link] = []
    chosen: Link | None = None
    try:
        parts = [encode(message), *([] if payload is None else [payload])]
        unsent: list[Link] = []
        poller = zmq.Poller()
        began_s = time.monotonic()
        while (waiting or links) and (now_s := time.monotonic()) - began_s < wait_s and not given_up():
            stagger_s = min(_STAGGER_S, wait_s / 2 / (len(waiting) + len(links)))
            if waiting and now_s - began_s >= stagger_s * len(links):
                resolved = _resolve(waiting.pop(0))
                waiting[:0] = resolved[1:]
                link = _begin(context, resolved[0], max_frame_bytes, pinned) if resolved else None
                if link is not None:
                    links.append(link)
                    unsent.append(link)
                    poller.register(link.socket, zmq.POLLIN)
            unsent = [link for link in unsent if not link.send(parts)]
            ready = dict(poller.poll(_POLL_MS))
            for link in links:
                if link.socket in ready and (frames := link.receive()) is not None:
                    chosen = link
                    return link, frames
            if not waiting and all(link.refusal() for link in links):
                break
        raise _failure(links, addresses)
    finally:
        for link in links:
            if link is not chosen:
                link.close()


def _resolve(address: Address) -> list[Address]:
    """IP addresses of a host name; empty for an unknown name.

    libzmq would resolve the name in the one thread that serves all connections of the context, which would all wait.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        log.debug("the name %s is unknown: %s", address.host, error)
        return []
    return [Address(str(host), address.port) for host in dict.fromkeys(one[4][0] for one in found)]


def _begin(
    context: zmq.Context[zmq.Socket[bytes]], address: Address, max_frame_bytes: int, pinned: Pinned | None
) -> Link | None:
    try:
        return Link(context, address, max_frame_bytes, pinned=pinned)
    except UsageError as error:  # such as a link-local address of an interface that this machine does not have
        log.debug("%s", error)
        return None


def _failure(links: Sequence[Link], addresses: Sequence[Address]) -> EdgeppError:
    for link in links:
        if reason := link.refusal():
            return PairingError(
                reason, "pair this machine: `edgepp invite` where the cluster runs, then `edgepp join CODE`"
            )
    where = " or ".join(map(str, dict.fromkeys(addresses))) or "no address"
    return PeerLost(f"no edgepp node answers at {where}", "is it running there, and is the port open in its firewall?")
