"""The addresses at which a cluster's coordinator may be reached."""

from __future__ import annotations

from collections.abc import Sequence

from edgepp.cluster.discovery.announcement import Announcement
from edgepp.cluster.identity import Cluster
from edgepp.wire.address import Address


def coordinator_addresses(
    cluster: Cluster, peers: Sequence[Address], announcements: Sequence[Announcement]
) -> list[Address]:
    """Every address at which the coordinator of ``cluster`` may be: ``peers``, announced ones, then remembered ones."""
    coordinator = (cluster.id, cluster.coordinator.node)
    announced = [
        address for one in announcements if (one.cluster, one.node) == coordinator for address in one.addresses
    ]
    return list(dict.fromkeys((*peers, *announced, *map(Address.parse, cluster.addresses))))


def may_move(known: Sequence[Address]) -> bool:
    """Whether the coordinator at ``known`` addresses may have moved: not one that only this machine can reach."""
    return not known or any(not address.is_loopback for address in known)
