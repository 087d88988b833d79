"""Which of several addresses leads to a peer: the first that answers, whatever their order.

A machine has more addresses than the network at hand can use (a VPN, a container bridge, the other family), so they are
all tried at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import zmq

from edgepp.errors import PairingError, PeerLost, UsageError
from edgepp.wire.messages import Message, encode
from edgepp.wire.security import Pinned
from edgepp.wire.transport import Address, Link

log = logging.getLogger("edgepp.wire")

_TURN_MS = 50


def reach(
    context: zmq.Context[zmq.Socket[bytes]],
    addresses: Sequence[Address],
    message: Message,
    wait_s: float,
    max_frame_bytes: int,
    pinned: Pinned | None = None,
    payload: bytes | None = None,
) -> tuple[Link, list[memoryview]]:
    """Send ``message``, with its ``payload``, to all ``addresses``; the link whose answer came first, and that answer.

    The other links are closed.

    Raises:
        PairingError: none answers, and one refused the handshake: its reason.
        PeerLost: none answers for ``wait_s`` seconds.
        RemoteProtocolError: the first answer has too many frames.
    """
    links: list[Link] = []
    for address in dict.fromkeys(addresses):
        try:
            links.append(Link(context, address, max_frame_bytes, pinned=pinned))
        except UsageError as error:  # such as a link-local address of an interface that is not here
            log.debug("%s", error)
    chosen: Link | None = None
    try:
        parts = [encode(message), *([] if payload is None else [payload])]
        chosen, frames = _first_answer(links, parts, wait_s)
        return chosen, frames
    finally:
        for link in links:
            if link is not chosen:
                link.close()


def _first_answer(links: Sequence[Link], parts: Sequence[bytes], wait_s: float) -> tuple[Link, list[memoryview]]:
    poller = zmq.Poller()
    for link in links:
        poller.register(link.socket, zmq.POLLIN)
    unsent = list(links)
    until_s = time.monotonic() + wait_s
    while links and time.monotonic() < until_s:
        unsent = [link for link in unsent if not link.send(parts)]
        ready = dict(poller.poll(_TURN_MS))
        for link in links:
            if link.socket in ready and (frames := link.receive()) is not None:
                return link, frames
        if all(link.refusal() for link in links):
            break
    where = " or ".join(str(link.address) for link in links) or "no address"
    for link in links:
        if reason := link.refusal():
            raise PairingError(
                reason, "pair this machine: `edgepp invite` where the cluster runs, then `edgepp join CODE`"
            )
    raise PeerLost(f"no edgepp node answers at {where}", "is it running there, and is the port open in its firewall?")
