"""Fairness between the owners of requests: whose request is admitted next, and whose is preempted. Pure.

Owners take turns, and an owner with less than an equal share of the budget has a claim to room.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Generic

from edgepp.engine.request import AnyRequest

_MAX_OWNERS = 4096
"""Owners whose turns are remembered."""


class OwnerShares(Generic[AnyRequest]):
    """The turns of owners, and the shares of the budget that their requests hold."""

    def __init__(self, live: Mapping[int, AnyRequest], waiting: Sequence[AnyRequest]) -> None:
        """Read ``live`` and ``waiting`` requests as they are at each call."""
        self._live = live
        self._waiting = waiting
        self._turns = itertools.count(1)
        self._turn: dict[str, int] = {}
        """When each owner had its last turn; the owner who has waited longest comes first."""

    def next_waiting(self, passed: AbstractSet[int] = frozenset()) -> AnyRequest | None:
        """The next request to admit, but none of ``passed``.

        Of requests that may make stages fail, one is live at a time, so that the next loss shows which one does. First
        comes the owner who holds fewest positions, among equals the owner who has waited longest for a turn; of
        one owner, preempted requests and then the oldest.
        """
        if not self._waiting:
            return None
        held = self._by_owner()
        tried = any(request.is_suspect for request in self._live.values())
        candidates = (
            request for request in self._waiting if request.id not in passed and not (tried and request.is_suspect)
        )

        def order(request: AnyRequest) -> tuple[int, int, bool, int]:
            return held.get(request.owner, 0), self._turn.get(request.owner, 0), not request.tokens, request.id

        return min(candidates, key=order, default=None)

    def _by_owner(self) -> dict[str, int]:
        """Positions that each owner's live requests hold."""
        held: dict[str, int] = {}
        for request in self._live.values():
            held[request.owner] = held.get(request.owner, 0) + len(request.ids)
        return held

    def greediest(self) -> AnyRequest:
        """The newest live request of the owner who holds most, but never the request that was admitted first."""
        first = min(self._live.values(), key=lambda request: request.turn)
        held = self._by_owner()
        others = (request for request in self._live.values() if request is not first)
        return max(others, key=lambda request: (held[request.owner], request.id))

    def over_share(self, request: AnyRequest, needed: int, budget: int) -> AnyRequest | None:
        """The live request to preempt so that ``request`` can begin; None if there is no claim to room.

        With the ``needed`` positions, the owner of ``request`` must stay within an equal share of the ``budget``, and
        the other owner be above it. Without the preempted request the other owner must still hold at least as much, or
        the two would preempt each other.
        """
        if len(self._live) < 2:
            return None
        held = self._by_owner()
        share = budget // len({*held, *(waiting.owner for waiting in self._waiting)})
        last, own = self.greediest(), held.get(request.owner, 0)
        if own + needed > share or held[last.owner] <= share:
            return None
        return last if held[last.owner] - len(last.ids) >= own else None

    def take_turn(self, owner: str) -> int:
        """Put ``owner`` behind all other owners; the number of the turn."""
        self._turn.pop(owner, None)
        self._turn[owner] = next(self._turns)
        if len(self._turn) > _MAX_OWNERS:
            del self._turn[next(iter(self._turn))]
        return self._turn[owner]
