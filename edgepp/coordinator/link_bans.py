"""Links between two stage nodes over which no frame gets, each avoided for a time. Pure: node ids and times in.

A node whose port is closed for one other node only, as by its firewall, still works beside all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from edgepp.cluster.membership import Membership
from edgepp.coordinator.failure_backoff import FailureBackoff
from edgepp.coordinator.load_tracker import split_host_id
from edgepp.coordinator.rank_loads import part_ids
from edgepp.placement.values import LinkSpeed, Plan, link_between

NodeLink = tuple[str, str]
"""The ids of the sending and of the receiving node."""
_CLOSED = LinkSpeed(latency_s=1e6, bytes_per_s=1.0)
"""Stand-in for the speed of a banned link, so that an order of stages without it costs less."""


class LinkBans:
    """The links that stages could not open; each further failure of a link doubles the time for which it is avoided."""

    def __init__(self) -> None:
        self._backoff = FailureBackoff()
        self._links: dict[NodeLink, None] = {}

    def failed(self, link: NodeLink, reason: str, now_s: float) -> None:
        """Avoid a link because of ``reason``."""
        self._links[link] = None
        self._backoff.unreachable(_key(link), reason, now_s)

    def banned(self, now_s: float) -> tuple[NodeLink, ...]:
        """The links that are avoided at ``now_s``."""
        return tuple(link for link in self._links if self._backoff.is_banned(_key(link), now_s))

    def reason(self, link: NodeLink) -> str:
        """Why a link failed last."""
        return self._backoff.reason(_key(link))

    def works(self, plan: Plan) -> None:
        """Forget the failures of the links of a plan over which an answer was finished."""
        self._forget(set(links_of(plan)))

    def forget(self, node: str) -> None:
        """Forget the failures of all links of a node."""
        self._forget({link for link in self._links if node in link})

    def _forget(self, links: set[NodeLink]) -> None:
        for link in links & self._links.keys():
            del self._links[link]
            self._backoff.clear(_key(link))


def links_of(plan: Plan) -> Iterator[NodeLink]:
    """The links from each stage of a plan to the next one; the first rank of a stage sends and receives."""
    nodes = [split_host_id(part_ids(host)[0])[0] for host, _ in plan.stages]
    return pairwise(nodes)


def without(links: Mapping[NodeLink, LinkSpeed], banned: tuple[NodeLink, ...]) -> dict[NodeLink, LinkSpeed]:
    """The speeds of ``links``, with ``banned`` ones so slow that placement avoids their direction where it can."""
    changed = dict(links)
    for sender, receiver in banned:
        if (receiver, sender) not in banned:
            changed[receiver, sender] = link_between(links, receiver, sender)
        changed[sender, receiver] = _CLOSED
    return changed


def avoided_links(avoided: Iterable[tuple[NodeLink, str]], members: Membership) -> list[dict[str, str]]:
    """One JSON object per link between two members that plans avoid for now, with the names of both and the reason."""
    names = {member.node: member.facts.name for member in members}
    return [
        {"sender": names[sender], "receiver": names[receiver], "reason": reason}
        for (sender, receiver), reason in avoided
        if sender in names and receiver in names
    ]


def _key(link: NodeLink) -> str:
    return " to ".join(link)
