"""The addresses at which a cluster's coordinator may be reached."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from edgepp.cluster.discovery.announcement import Announcement
from edgepp.cluster.identity import Cluster
from edgepp.wire.address import Address

MAX_ADDRESSES = 64
"""Addresses that are tried at once."""


def coordinator_addresses(
    cluster: Cluster, peers: Sequence[Address], announcements: Sequence[Announcement]
) -> list[Address]:
    """Addresses at which the coordinator of ``cluster`` may be, ``MAX_ADDRESSES`` at most.

    ``peers`` come first; then remembered addresses and those of each announcement in turns, since anybody on the
    network can announce any addresses in the coordinator's name, and many of them.
    """
    coordinator = (cluster.id, cluster.coordinator.node)
    announced = [one.addresses for one in announcements if (one.cluster, one.node) == coordinator]
    others = in_turns(tuple(map(Address.parse, cluster.addresses)), *announced)
    return list(dict.fromkeys((*peers, *others)))[:MAX_ADDRESSES]


def in_turns(*lists: Sequence[Address]) -> tuple[Address, ...]:
    """The first address of each list, then the second ones, and so on; each address once."""
    found = (address for turn in zip_longest(*lists) for address in turn if address is not None)
    return tuple(dict.fromkeys(found))


def may_move(known: Sequence[Address]) -> bool:
    """Whether the coordinator at ``known`` addresses may have moved: not one that only this machine can reach."""
    return not known or any(not address.is_loopback for address in known)
