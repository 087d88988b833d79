"""Which of several ways to another machine is fastest: a cable beside Wi-Fi is measured, since no system knows it."""

from __future__ import annotations

import ipaddress
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import closing

import zmq

from edgepp.cluster.discovery.network_interfaces import interfaces, shared_interface
from edgepp.errors import EdgeppError
from edgepp.wire.address import Address
from edgepp.wire.link_rate import MAX_ECHO_FRAME_BYTES, measure_echo
from edgepp.wire.security import Pinned
from edgepp.wire.transport import Link

log = logging.getLogger("edgepp.wire")

PATH_WAIT_S = 1.0
"""How long an echo over one path may take; a path that takes longer is not used unless it is the only one."""


def paths(addresses: Sequence[Address]) -> list[Address]:
    """The first of another machine's ``addresses`` per network interface of this machine that is on its network.

    An address that this machine has too, such as Docker's default one, leads back here and is none; nor is one of a
    virtual interface.
    """
    mine = interfaces()
    own = {one.address for one in mine}
    found: dict[str, Address] = {}
    for address in addresses:
        try:
            ip = ipaddress.ip_address(address.host)
        except ValueError:  # a name, or an address with the scope of one interface
            continue
        shared = shared_interface(mine, ip)
        if shared is not None and str(ip) not in own:
            found.setdefault(shared.name, address)
    return list(found.values())


def fastest_first(
    context: zmq.Context[zmq.Socket[bytes]],
    addresses: Sequence[Address],
    pinned: Pinned | None,
    sizes: tuple[int, int],
    given_up: Callable[[], bool] = lambda: False,
) -> list[Address]:
    """The ``addresses`` of a stage's data socket, first the one over which echoes of ``sizes`` bytes are fastest.

    With fewer than two paths to that machine nothing is measured, and the order is as given; so it is where no path
    answers.
    """
    candidates = paths(addresses)
    if len(candidates) < 2:
        return list(addresses)
    took = {address: _round_trips(context, address, pinned, sizes, given_up) for address in candidates}
    log.info("paths, seconds for two echoes: %s", ", ".join(f"{address} {s:.4f}" for address, s in took.items()))
    best = min(candidates, key=took.__getitem__)
    return list(addresses) if math.isinf(took[best]) else list(dict.fromkeys((best, *addresses)))


def _round_trips(
    context: zmq.Context[zmq.Socket[bytes]],
    address: Address,
    pinned: Pinned | None,
    sizes: tuple[int, int],
    given_up: Callable[[], bool],
) -> float:
    """Seconds for an echo of each of ``sizes`` bytes to ``address``; infinite where it does not answer."""
    total_s = 0.0
    try:
        with closing(Link(context, address, MAX_ECHO_FRAME_BYTES, pinned=pinned)) as link:
            for size in sizes:
                echo_s = measure_echo(link, size, PATH_WAIT_S, rounds=2, given_up=given_up)
                if echo_s is None:
                    return math.inf
                total_s += echo_s
    except EdgeppError as error:
        log.debug("no path to %s: %s", address, error)
        return math.inf
    return total_s
