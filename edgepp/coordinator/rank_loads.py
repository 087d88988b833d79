"""The loads of the ranks of one stage, and how the ranks find each other. Pure: reports in, orders out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from edgepp.cluster.membership import Member
from edgepp.coordinator.load_tracker import split_host_id
from edgepp.placement.groups import parts_of
from edgepp.wire.address import Address
from edgepp.wire.messages.nodes import Load
from edgepp.wire.messages.rank_meetings import RankAt, RankListens

Told = tuple[str, RankAt]
"""A node id, and the message to send to that node."""


def part_ids(host: str) -> list[str]:
    """Host ids (``node/slot``) of the ranks of a stage host; of a host that is no group, its own."""
    return [part.host for part in parts_of(host)]


def nodes_of(host: str) -> set[str]:
    """Ids of the nodes on which a stage host runs."""
    return {split_host_id(part)[0] for part in part_ids(host)}


def rank_load(load: Load, host: str, rank: int, num_layers: int) -> Load:
    """``load`` for the rank ``rank`` of a stage host; unchanged for a host that is no group.

    The ranks of the last stage of a model with ``num_layers`` layers share the output head.

    The id of the group follows from who shares what, so that ranks which have loaded stay when a coordinator restarts.
    """
    parts = parts_of(host)
    if len(parts) == 1:
        return load
    what = f"{host} {load.model} {load.start} {load.stop} {load.exact} {load.kv_bits}"
    group = 1 + (int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big") >> 2)
    weights = tuple(part.weight for part in parts)
    return load._replace(group=group, rank=rank, weights=weights, head=load.stop == num_layers)


class RankMeetings:
    """Which ranks listen, until all ranks of a group do: then each node is told where the others listen.

    A rank that starts again listens again, and waits until all others do too, since ranks end together.
    """

    def __init__(self) -> None:
        self._ports: dict[int, dict[int, int]] = {}
        """Port by group and rank."""

    def clear(self) -> None:
        """Forget all ranks, for a new plan."""
        self._ports.clear()

    def listening(self, group: int) -> Sequence[int]:
        """The ranks of a group that wait for the others."""
        return tuple(self._ports.get(group, ()))

    def listens(self, report: RankListens, rank: int, members: Mapping[int, Member]) -> list[Told]:
        """Note that a rank listens; ``members`` are those of its group by rank.

        Returns what the nodes are told once all ranks listen.
        """
        ports = self._ports.setdefault(report.group, {})
        ports[rank] = report.port
        if len(ports) < len(members):
            return []
        del self._ports[report.group]
        return [
            (member.node, rank_at(report.group, other, members[other], ports[other]))
            for rank, member in members.items()
            for other in members
            if other != rank
        ]


def rank_at(group: int, rank: int, member: Member, port: int) -> RankAt:
    """Where the rank of a member listens."""
    hosts = dict.fromkeys((member.host, *filter(None, member.facts.addresses.split(","))))
    addresses = ",".join(str(Address(host, port)) for host in list(hosts)[:10])
    return RankAt(group, rank, addresses, member.key, member.facts.name)
