"""Where a cluster's coordinator may be."""

from __future__ import annotations

from collections.abc import Sequence

from edgepp.cluster.discovery.announcement import Announcement
from edgepp.cluster.identity import Cluster
from edgepp.wire.transport import Address


def coordinator_addresses(cluster: Cluster, peers: Sequence[Address], records: Sequence[Announcement]) -> list[Address]:
    """Every address at which the coordinator of ``cluster`` may be: given, seen on the network, remembered."""
    seen = [a for r in records if (r.cluster, r.node) == (cluster.id, cluster.coordinator.node) for a in r.addresses]
    return list(dict.fromkeys((*peers, *seen, *map(Address.parse, cluster.addresses))))


def may_move(known: Sequence[Address]) -> bool:
    """Whether a coordinator last known there may be heard elsewhere: not one that only loopback reaches."""
    return not known or any(not address.is_loopback for address in known)
