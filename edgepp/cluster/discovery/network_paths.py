"""Which of several ways to another machine is fastest: a cable beside Wi-Fi is measured, since no system knows it."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import NamedTuple

import zmq

from edgepp.cluster.discovery.network_interfaces import interfaces, shared_interface
from edgepp.errors import EdgeppError
from edgepp.wire.address import Address
from edgepp.wire.link_rate import MAX_ECHO_FRAME_BYTES, Echoes, measure_link
from edgepp.wire.security import Pinned
from edgepp.wire.transport import Link

log = logging.getLogger("edgepp.wire")

PATH_WAIT_S = 1.0
"""How long an echo over one path may take; a path that takes longer is not used unless it is the only one."""


class Ordered(NamedTuple):
    """Addresses of another machine's socket, and the echoes over the first one; None where nothing was measured."""

    addresses: list[Address]
    echoes: Echoes | None


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
) -> Ordered:
    """The ``addresses`` of a socket that returns echoes, first the one over which those of ``sizes`` are fastest.

    ``sizes`` are the bytes of a short and of a long echo.

    With fewer than two paths to that machine nothing is measured, and the order is as given; so it is where no path
    answers.
    """
    candidates = paths(addresses)
    if len(candidates) < 2:
        return Ordered(list(addresses), None)
    tried = {address: _echoes(context, address, pinned, sizes, given_up) for address in candidates}
    took = {address: echoes for address, echoes in tried.items() if echoes is not None}
    log.info("paths, seconds for two echoes: %s", ", ".join(f"{at} {_both_s(one):.4f}" for at, one in took.items()))
    if not took:
        return Ordered(list(addresses), None)
    best = min(took, key=lambda address: _both_s(took[address]))
    return Ordered(list(dict.fromkeys((best, *addresses))), took[best])


def _both_s(echoes: Echoes) -> float:
    return echoes.short_s + echoes.long_s


def _echoes(
    context: zmq.Context[zmq.Socket[bytes]],
    address: Address,
    pinned: Pinned | None,
    sizes: tuple[int, int],
    given_up: Callable[[], bool],
) -> Echoes | None:
    """The echoes over ``address``; None where it does not answer in time."""
    try:
        with closing(Link(context, address, MAX_ECHO_FRAME_BYTES, pinned=pinned)) as link:
            return measure_link(link, sizes, PATH_WAIT_S, given_up)
    except EdgeppError as error:
        log.debug("no path to %s: %s", address, error)
        return None
