"""Links to the other ranks, by the fastest way where several networks lead there.

Ranks choose at the same time, so each returns the others' echoes while a thread of its own measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import zmq

from edgepp.cluster.discovery.network_paths import fastest_first
from edgepp.errors import UsageError
from edgepp.wire.address import Address
from edgepp.wire.link_rate import PROBE_BYTES
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.data import Echo
from edgepp.wire.security import Pinned
from edgepp.wire.transport import Link, Listener, Sender


def fastest_paths(
    context: zmq.Context[zmq.Socket[bytes]],
    candidates: Mapping[int, Sequence[Address]],
    pins: Mapping[int, Pinned | None],
    row_bytes: int,
    meanwhile: Callable[[], None],
) -> dict[int, Sequence[Address]]:
    """The fastest address of each rank, or all of its ``candidates`` where nothing was measured.

    Echoes have ``row_bytes`` and ``PROBE_BYTES`` bytes. ``meanwhile`` is called again and again until the last one.
    """

    def chosen(rank: int) -> Sequence[Address]:
        ordered, echoes = fastest_first(context, candidates[rank], pins[rank], (row_bytes, PROBE_BYTES))
        return ordered if echoes is None else ordered[:1]

    with ThreadPoolExecutor(1, "rank-paths") as pool:
        found = {rank: pool.submit(chosen, rank) for rank in candidates}
        while not all(one.done() for one in found.values()):
            meanwhile()
        return {rank: one.result() for rank, one in found.items()}


def begun_links(
    context: zmq.Context[zmq.Socket[bytes]], addresses: Sequence[Address], max_frame_bytes: int, pin: Pinned | None
) -> list[Link]:
    """A link that begins to connect for each of ``addresses`` of one rank."""
    found = []
    for address in addresses:
        with suppress(UsageError):  # such as a link-local address of an interface that this machine does not have
            found.append(Link(context, address, max_frame_bytes, None, pin))
    return found


def return_echo(listener: Listener, sender: Sender, echo: Echo, payload: Sequence[memoryview]) -> None:
    """Return the ``echo`` of a rank that measures; one that is a reply, or longer than is measured, is ignored."""
    if not echo.reply and sum(map(len, payload)) <= PROBE_BYTES:
        listener.send(sender.route, [encode(echo._replace(reply=True)), *payload])
