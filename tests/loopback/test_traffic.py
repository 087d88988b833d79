"""What links and listeners count: bytes both ways, and connections made again."""

from __future__ import annotations

from contextlib import closing

import zmq

from edgepp.wire.address import Address
from edgepp.wire.traffic import Traffic
from edgepp.wire.transport import Link, Listener
from tests.waiting import PATIENCE_S, eventually

FRAME_BYTES = 1 << 16


def hears(link: Link, listener: Listener, parts: list[bytes]) -> bytes:
    """The route by which ``listener`` has heard ``parts``, which were sent as soon as there was a connection."""
    assert link.send(parts, PATIENCE_S)
    assert listener.socket.poll(int(PATIENCE_S * 1000), zmq.POLLIN)
    received = listener.receive()
    assert received is not None
    assert [bytes(frame) for frame in received[1]] == parts
    return received[0].route


def test_bytes_and_connections_made_again_are_counted() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    listener = Listener(context, Address("127.0.0.1", 0), FRAME_BYTES)
    with closing(Link(context, listener.address, FRAME_BYTES)) as link:
        route = hears(link, listener, [b"abc", bytes(1000)])
        assert listener.send(route, [b"12345"])
        assert link.receive(PATIENCE_S) is not None
        assert link.traffic == Traffic(sent_bytes=1003, received_bytes=5, reconnects=0)
        assert listener.traffic == Traffic(sent_bytes=5, received_bytes=1003, reconnects=0)
        listener.close()
        unheard = [b"unheard"]
        eventually("the end of the connection", lambda: not link.send(unheard))
        unheard_bytes = link.traffic.sent_bytes - 1003
        assert unheard_bytes % len(unheard[0]) == 0

        def again() -> Listener:
            return Listener(context, Address("127.0.0.1", listener.address.port), FRAME_BYTES)

        with closing(again()) as second:
            hears(link, second, [b"more"])
            link.refusal()
            assert link.traffic == Traffic(1003 + unheard_bytes + 4, 5, reconnects=1)
    context.term()
