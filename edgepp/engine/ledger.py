"""KV positions: which request is admitted next, which must give way, and what is kept for prompts to come. Pure.

All sequences together, live ones and those kept for their prefixes, hold at most ``budget`` positions. Kept ones give
way first, then the newest live request of the owner who holds most: it loses its keys and values, not its tokens, and
is admitted again when there is room. Owners take turns, and room is made for an owner with less than an equal share of
the budget. The live request that was admitted first never gives way, so every request ends.

The ledger decides and counts. Statuses belong to ``EngineCore``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from edgepp.engine.prefix import MIN_SHARED_TOKENS, PrefixCache, common
from edgepp.engine.request import AnyRequest, Request, Reuse
from edgepp.engine.scheduler import MIN_ROWS
from edgepp.errors import EdgeppError

MAX_WAITING = 256
"""Requests that wait for room; more are refused."""
HEADROOM = 64
"""Positions that must be free beyond its own for a request to be admitted, so that it does not give way at once."""
_MAX_OWNERS = 4096
"""Owners whose turns are remembered."""


@dataclass(frozen=True)
class _Match:
    """What a request may begin with: ``length`` positions of ``source``, which moves over as it is, or is copied."""

    source: int = 0
    length: int = 0
    moves: bool = False


class Ledger(Generic[AnyRequest]):
    """The requests of an engine, by what they hold."""

    def __init__(self, budget: int | None, spare: int, *, shares: bool) -> None:
        """``budget`` positions in all; without one, ``spare`` are kept in addition to the live requests.

        Unless the ledger ``shares``, nothing is kept.
        """
        self._budget = budget
        self._spare = spare
        self._shares = shares
        self._sequences = itertools.count(1)
        self._prefixes = PrefixCache()
        self._draining: dict[int, AnyRequest] = {}
        """Finished requests with steps in the ring, by sequence."""
        self._freed: list[int] = []
        self._turns = itertools.count(1)
        self._turn: dict[str, int] = {}
        """When each owner had its last turn; who has waited longest comes first."""
        self.live: dict[int, AnyRequest] = {}
        """Admitted requests, by sequence."""
        self.waiting: list[AnyRequest] = []
        """Requests that wait for room, in order of arrival."""
        self.reuse = Reuse()

    @property
    def kept(self) -> int:
        """Positions kept for prompts to come."""
        return self._prefixes.positions

    @property
    def room(self) -> int:
        """Positions that are free; below 0, something must give way. Live requests count only against a budget."""
        if self._budget is None:
            return self._spare - self._idle
        return self._budget - self._held - self._idle

    def add(self, request: AnyRequest) -> None:
        """Queue a request.

        Raises:
            EdgeppError: too many are waiting.
        """
        if len(self.waiting) >= MAX_WAITING:
            raise EdgeppError(f"{MAX_WAITING} requests are waiting already", "ask again later")
        self.waiting.append(request)

    def withdraw(self, request: AnyRequest) -> None:
        """Forget a request that waits, if it does."""
        if request in self.waiting:
            self.waiting.remove(request)

    def admit(self) -> Iterator[AnyRequest]:
        """Give a sequence to each request whose turn it is, as far as the budget goes.

        Its ``sent`` says how many positions are computed already: its sequence's own, or to be copied from its source.
        """
        passed: set[int] = set()
        while (request := self._next(passed)) is not None and self._fits(request):
            match = self._match(request)
            if match is None:
                passed.add(request.id)  # what it will share is being computed just now
                continue
            self.waiting.remove(request)
            self._start(request, match)
            yield request

    def finish(self, request: AnyRequest) -> None:
        """Keep what the stages hold of a live request that has ended, once its steps in the ring are back."""
        del self.live[request.sequence]
        if request.source and not request.steps_in_ring:
            request.sent = 0  # it was never copied
        if request.steps_in_ring and self._shares:
            self._draining[request.sequence] = request
        else:
            self._keep(request)

    def returned(self, sequence: int) -> None:
        """Note that a step of a finished request came back; behind the last one its sequence may serve others."""
        request = self._draining.get(sequence)
        if request is not None:
            request.steps_in_ring -= 1
            if not request.steps_in_ring:
                del self._draining[sequence]
                self._keep(request)

    def forget(self, sequence: int) -> None:
        """Free a sequence that is of no use any more, whoever held it."""
        self._draining.pop(sequence, None)
        self.live.pop(sequence, None)
        self._freed.append(sequence)

    def preempt(self, request: AnyRequest, *, end_turn: bool = False) -> None:
        """Free a live request's sequence, and queue it before those that came later.

        ``end_turn`` puts its owner behind all others.
        """
        self.forget(request.sequence)
        request.sequence, request.source, request.guesses = 0, 0, ()
        request.sent = request.steps_in_ring = 0
        later = [at for at, other in enumerate(self.waiting) if other.id > request.id]
        self.waiting.insert(later[0] if later else len(self.waiting), request)
        if end_turn:
            self._take_turn(request.owner)

    def over_share(self) -> AnyRequest | None:
        """The live request that keeps the next one's owner from its share of the budget, if one does."""
        request = self._next(set())
        if request is None or self._fits(request):
            return None
        return self._debtor(request)

    def over_budget(self) -> AnyRequest | None:
        """The live request that must give way to the budget, if freeing all that is kept was not enough."""
        while self.room < 0:
            if len(self._prefixes):
                self._freed.append(self._prefixes.evict())
            elif self._draining:
                self.forget(next(iter(self._draining)))
            elif len(self.live) > 1:
                return self._greediest()
            else:
                break
        return None

    def clear(self) -> bool:
        """Keep nothing for prompts to come; whether there was anything."""
        had = bool(len(self._prefixes))
        while len(self._prefixes):
            self._freed.append(self._prefixes.evict())
        return had

    def freed(self) -> list[int]:
        """Sequences that the stages are to forget, each named once; none that another is just being copied from."""
        if not self._freed:
            return []
        sources = {request.source for request in self.live.values()}
        freed = [sequence for sequence in self._freed if sequence not in sources]
        self._freed = [sequence for sequence in self._freed if sequence in sources]
        return freed

    def _next(self, passed: set[int]) -> AnyRequest | None:
        """The oldest waiting request of the owner who has least under way; among equals, who waited longest for a turn.

        Of one owner, requests that had begun already go before all others.
        """
        if not self.waiting:
            return None
        held = self._by_owner()
        candidates = (request for request in self.waiting if request.id not in passed)

        def order(request: AnyRequest) -> tuple[int, int, bool, int]:
            return held.get(request.owner, 0), self._turn.get(request.owner, 0), not request.tokens, request.id

        return min(candidates, key=order, default=None)

    def _by_owner(self) -> dict[str, int]:
        """Positions that the live requests of each owner hold."""
        held: dict[str, int] = {}
        for request in self.live.values():
            held[request.owner] = held.get(request.owner, 0) + len(request.ids)
        return held

    def _greediest(self) -> AnyRequest:
        """The newest request of the owner who holds most, but never the one that was admitted first."""
        first = min(self.live.values(), key=lambda request: request.turn)
        held = self._by_owner()
        others = (request for request in self.live.values() if request is not first)
        return max(others, key=lambda request: (held[request.owner], request.id))

    def _debtor(self, request: AnyRequest) -> AnyRequest | None:
        """Who is to give way so that ``request`` may begin: only for an owner within its share, and of one beyond it.

        The other one must not have less than that owner then, or room would be made for it in its turn.
        """
        if self._budget is None or len(self.live) < 2:
            return None
        held = self._by_owner()
        share = self._budget // len({*held, *(waiting.owner for waiting in self.waiting)})
        last, own = self._greediest(), held.get(request.owner, 0)
        if own + self._needed(request) > share or held[last.owner] <= share:
            return None
        return last if held[last.owner] - len(last.ids) >= own else None

    def _take_turn(self, owner: str) -> int:
        """Put ``owner`` behind all others."""
        self._turn.pop(owner, None)
        self._turn[owner] = next(self._turns)
        if len(self._turn) > _MAX_OWNERS:
            del self._turn[next(iter(self._turn))]
        return self._turn[owner]

    def _match(self, request: AnyRequest) -> _Match | None:
        """What a request may begin with; None where more of it will be there soon."""
        best = _Match()
        if not self._shares or request.alone:
            return best
        ids = request.known(max(0, len(request.ids) - MIN_ROWS))  # the last is wanted, and goes with one more
        found = self._prefixes.find(request.owner, ids)
        if found is not None:
            kept, length = found
            best = _Match(kept.sequence, length, self._moves(len(kept.ids), length, len(ids)))
        for ended in self._draining.values():
            held = min(ended.sent, len(ids))
            if ended.owner == request.owner and common(ended.known(held), ids) > max(best.length, MIN_SHARED_TOKENS):
                return None
        for live in self.live.values():
            if live.owner != request.owner:
                continue
            shared = common(live.known(min(len(live.ids), len(ids))), ids)
            if min(shared, live.sent) > best.length and min(shared, live.sent) >= MIN_SHARED_TOKENS:
                best = _Match(live.sequence, min(shared, live.sent))
            if not live.status.decodes and shared > max(live.sent, best.length, MIN_SHARED_TOKENS):
                return None
        return best

    def _moves(self, kept: int, shared: int, needed: int) -> bool:
        """Whether a kept sequence moves over: the rest of it is little, or there is no room for both."""
        room = self._budget is None or self._held + self._idle + needed + HEADROOM <= self._budget
        return not room or kept - shared <= kept // 4

    @property
    def _held(self) -> int:
        """Positions of the live requests, with their step in the ring."""
        return sum(len(request.ids) + 1 + len(request.guesses) for request in self.live.values())

    @property
    def _idle(self) -> int:
        """Positions that no answer under way needs."""
        return self.kept + sum(request.sent for request in self._draining.values())

    def _fits(self, request: AnyRequest) -> bool:
        if self._budget is None or not self.live:
            return True
        return self._held + self._needed(request) <= self._budget

    @staticmethod
    def _needed(request: Request) -> int:
        """Positions that must be free for a request to be admitted."""
        return min(len(request.ids) + HEADROOM, request.capacity)

    def _start(self, request: AnyRequest, match: _Match) -> None:
        if match.moves:
            self._prefixes.take(match.source)
        request.sequence = match.source if match.moves else next(self._sequences)
        request.source = 0 if match.moves else match.source
        request.sent = match.length
        self.live[request.sequence] = request
        request.turn = self._take_turn(request.owner)
        if not request.tokens:
            self.reuse.asked += request.prompt_tokens
            self.reuse.reused += match.length
            request.timing.reused = match.length

    def _keep(self, request: AnyRequest) -> None:
        if self._shares:
            self._freed += self._prefixes.keep(request.sequence, request.owner, request.ids[: request.sent])
        else:
            self._freed.append(request.sequence)
