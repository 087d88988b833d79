"""KV positions: which request is admitted or preempted next, and which prefixes are kept. Pure.

All sequences together, live ones and those kept for their prefixes, hold at most ``budget`` positions. Kept sequences
are evicted first, those of least worth (``PrefixCache``) before others; then the newest live request of the owner who
holds most is preempted: it loses its keys and values, not its tokens, and is admitted again when there is room. Owners
take turns, and room is made for an owner with less than an equal share of the budget. The live request that was
admitted first is never preempted, so every request ends.

The ledger decides and counts. Statuses belong to ``EngineCore``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from edgepp.engine.prefix_cache import MIN_SHARED_TOKENS, Ids, Kept, PrefixCache, common
from edgepp.engine.request import AnyRequest, Request
from edgepp.engine.scheduler import MIN_ROWS
from edgepp.engine.timing import Reuse
from edgepp.errors import Overloaded

MAX_WAITING = 256
"""Requests that may wait for room; more are refused."""
HEADROOM = 64
"""Positions that must be free beyond a request's own for its admission, so that it is not preempted at once."""
_MAX_LOSS = 32
"""A kept sequence is taken over if at most one in so many of its positions is lost by that; else it is copied."""
_MAX_OWNERS = 4096
"""Owners whose turns are remembered."""


@dataclass(frozen=True)
class _Match:
    """A prefix that a request can share: ``length`` positions of ``source``, taken over (``moves``) or copied."""

    source: int = 0
    length: int = 0
    moves: bool = False
    kept: Kept | None = None
    """The kept sequence that ``source`` is; None for a live one."""


@dataclass(frozen=True)
class SuspendedSequence:
    """A sequence of which the stages held positions when they were suspended."""

    sequence: int
    ids: Sequence[int] | Ids
    """Token ids, of at least as many positions."""
    positions: int
    """Positions that all stages had computed."""
    capacity: int = 0
    request: int = 0
    """Id of the request that goes on with it; 0 for a prefix that is kept."""

    @classmethod
    def of(cls, request: Request) -> SuspendedSequence:
        """The sequence of a live request."""
        return cls(request.sequence, request.ids, request.settled, request.capacity, request.id)


class Ledger(Generic[AnyRequest]):
    """The requests of one engine, and the KV positions that each holds."""

    def __init__(self, budget: int | None, spare: int, *, shares: bool) -> None:
        """Allow ``budget`` positions in all; without a budget, keep ``spare`` besides those of live requests.

        Prefixes are kept and shared only if the ledger ``shares``.
        """
        self._budget = budget
        self._spare = spare
        self._shares = shares
        self._sequences = itertools.count(1)
        self._prefixes = PrefixCache()
        self._draining: dict[int, AnyRequest] = {}
        """Finished requests with steps in the ring, by sequence."""
        self._retained: dict[int, tuple[int, int]] = {}
        """Sequence, and positions that it holds, of each request that waits since its stages were suspended, by id."""
        self._freed: list[int] = []
        self._turns = itertools.count(1)
        self._turn: dict[str, int] = {}
        """When each owner had its last turn; the owner who has waited longest comes first."""
        self.live: dict[int, AnyRequest] = {}
        """Admitted requests by sequence."""
        self.waiting: list[AnyRequest] = []
        """Requests that wait for room, in order of arrival."""
        self.reuse = Reuse()

    @property
    def kept(self) -> int:
        """Positions kept for the prefixes of future prompts."""
        return self._prefixes.positions

    @property
    def in_flight(self) -> bool:
        """Whether a step of any sequence is in the ring."""
        return bool(self._draining) or any(request.steps_in_ring for request in self.live.values())

    @property
    def room(self) -> int:
        """Free positions, below 0 where some must be freed. Live requests count only against a budget."""
        if self._budget is None:
            return self._spare - self._idle
        return self._budget - self.held - self._idle

    def add(self, request: AnyRequest) -> None:
        """Queue a request.

        Raises:
            Overloaded: too many requests wait.
        """
        if len(self.waiting) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} requests are waiting already", "ask again later")
        self.waiting.append(request)

    def withdraw(self, request: AnyRequest) -> None:
        """Remove a request from the queue, if it is there."""
        if request in self.waiting:
            self.waiting.remove(request)
            self._drop_retained(request)

    def admit(self) -> Iterator[AnyRequest]:
        """Give a sequence to each request whose turn it is, as far as the budget goes.

        The request's ``sent`` counts the positions that it has already, or that are to be copied from ``source``.
        """
        passed: set[int] = set()
        while (request := self._next(passed)) is not None and self._fits(request):
            match = self._match(request)
            if match is None:
                passed.add(request.id)  # the prefix that it will share is being computed now
                continue
            self.waiting.remove(request)
            self._start(request, match)
            yield request

    def finish(self, request: AnyRequest) -> None:
        """Keep the sequence of a live request that has ended, once its steps in the ring are back."""
        del self.live[request.sequence]
        if request.source and not request.steps_in_ring:
            request.sent = 0  # it was never copied
        if request.steps_in_ring and self._shares:
            self._draining[request.sequence] = request
        else:
            self._keep(request)

    def returned(self, sequence: int) -> None:
        """Note that a step of a finished request came back; after its last step, its sequence can be shared."""
        request = self._draining.get(sequence)
        if request is not None:
            request.steps_in_ring -= 1
            if not request.steps_in_ring:
                del self._draining[sequence]
                self._keep(request)

    def forget(self, sequence: int) -> None:
        """Free a sequence, whether a live or a finished request holds it."""
        self._draining.pop(sequence, None)
        self.live.pop(sequence, None)
        self._freed.append(sequence)

    def preempt(self, request: AnyRequest, *, end_turn: bool = False) -> None:
        """Free a live request's sequence, and queue the request before later ones.

        ``end_turn`` puts its owner behind all other owners.
        """
        self.forget(request.sequence)
        self._requeue(request)
        if end_turn:
            self._take_turn(request.owner)

    def suspend(self) -> list[SuspendedSequence]:
        """Queue all live requests again; the sequences that the stages should hold.

        The sequence of a live request is retained for it, and for nobody else, until ``resume`` says what is left.
        """
        for ended in self._draining.values():
            ended.sent = ended.settled
            self._keep(ended)
        self._draining.clear()
        suspended = []
        for request in self.live.values():
            if request.settled and not request.source:
                self._retained[request.id] = (request.sequence, request.settled)
                suspended.append(SuspendedSequence.of(request))
            self._requeue(request)
        self.live.clear()
        kept = [SuspendedSequence(one.sequence, one.ids, len(one.ids)) for one in self._prefixes]
        return suspended + kept

    def resume(self, lengths: Mapping[int, int], spare: int, *, shares: bool) -> None:
        """Keep of each sequence the positions in ``lengths``; the arguments are else those of the constructor."""
        self._spare, self._shares = spare, shares
        for kept in self._prefixes:
            self._freed += self._prefixes.cut(kept.sequence, lengths.get(kept.sequence, 0))
        for request in self.waiting:
            if request.id in self._retained:
                sequence, held = self._retained[request.id]
                # a token is sampled from a result that was lost, so its position is computed once more
                usable = len(request.ids) - (1 if request.tokens else MIN_ROWS)
                self._retained[request.id] = sequence, min(held, lengths.get(sequence, 0), usable)
                if self._retained[request.id][1] <= 0:
                    self._drop_retained(request)

    def _requeue(self, request: AnyRequest) -> None:
        request.sequence, request.source, request.guesses = 0, 0, ()
        request.sent = request.settled = request.steps_in_ring = 0
        later = [at for at, other in enumerate(self.waiting) if other.id > request.id]
        self.waiting.insert(later[0] if later else len(self.waiting), request)

    def _drop_retained(self, request: AnyRequest) -> None:
        sequence, _ = self._retained.pop(request.id, (0, 0))
        if sequence:
            self._freed.append(sequence)

    def over_share(self) -> AnyRequest | None:
        """The live request to preempt so that the next owner gets its share of the budget; None if there is none."""
        request = self._next(set())
        if request is None or self._fits(request):
            return None
        return self._over_share(request)

    def over_budget(self) -> AnyRequest | None:
        """The live request to preempt for the budget, after evicting kept sequences; None if that was enough."""
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
        """Evict all kept sequences; whether there were any."""
        had = bool(len(self._prefixes))
        while len(self._prefixes):
            self._freed.append(self._prefixes.evict())
        return had

    def freed(self) -> list[int]:
        """Sequences to free on the stages, each returned once, and none while a request is copied from it."""
        if not self._freed:
            return []
        sources = {request.source for request in self.live.values()}
        freed = [sequence for sequence in self._freed if sequence not in sources]
        self._freed = [sequence for sequence in self._freed if sequence in sources]
        return freed

    def _next(self, passed: set[int]) -> AnyRequest | None:
        """The next request to admit, but none of ``passed``.

        Of requests that may make stages fail, one is live at a time, so that the next loss shows which one does. First
        comes the owner who holds fewest positions, among equals the owner who has waited longest for a turn; of
        one owner, preempted requests and then the oldest.
        """
        if not self.waiting:
            return None
        held = self._by_owner()
        tried = any(request.is_suspect for request in self.live.values())
        candidates = (
            request for request in self.waiting if request.id not in passed and not (tried and request.is_suspect)
        )

        def order(request: AnyRequest) -> tuple[int, int, bool, int]:
            return held.get(request.owner, 0), self._turn.get(request.owner, 0), not request.tokens, request.id

        return min(candidates, key=order, default=None)

    def _by_owner(self) -> dict[str, int]:
        """Positions that each owner's live requests hold."""
        held: dict[str, int] = {}
        for request in self.live.values():
            held[request.owner] = held.get(request.owner, 0) + len(request.ids)
        return held

    def _greediest(self) -> AnyRequest:
        """The newest live request of the owner who holds most, but never the request that was admitted first."""
        first = min(self.live.values(), key=lambda request: request.turn)
        held = self._by_owner()
        others = (request for request in self.live.values() if request is not first)
        return max(others, key=lambda request: (held[request.owner], request.id))

    def _over_share(self, request: AnyRequest) -> AnyRequest | None:
        """The live request to preempt so that ``request`` can begin; None if its owner has no claim to room.

        The owner of ``request`` must stay within an equal share of the budget and the other owner be above it. Without
        the preempted request the other owner must still hold at least as much, or the two would preempt each other.
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
        """Put ``owner`` behind all other owners; the number of the turn."""
        self._turn.pop(owner, None)
        self._turn[owner] = next(self._turns)
        if len(self._turn) > _MAX_OWNERS:
            del self._turn[next(iter(self._turn))]
        return self._turn[owner]

    def _match(self, request: AnyRequest) -> _Match | None:
        """The longest prefix that a request can share now; None if a longer one is being computed."""
        if request.id in self._retained:
            return _Match(*self._retained[request.id], moves=True)
        best = _Match()
        if not self._shares or request.alone:
            return best
        ids = request.known(max(0, len(request.ids) - MIN_ROWS))  # at least ``MIN_ROWS`` rows are always computed
        found = self._prefixes.find(request.owner, ids)
        if found is not None:
            kept, length = found
            best = _Match(kept.sequence, length, self._moves(kept, length, len(ids)), kept)
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

    def _moves(self, kept: Kept, shared: int, needed: int) -> bool:
        """Whether to take over a kept sequence, which loses its rest: that is short, or there is no room for a copy.

        A copy may displace what is worth less than the kept sequence.
        """
        if len(kept.ids) - shared <= max(MIN_SHARED_TOKENS, len(kept.ids) // _MAX_LOSS):
            return True
        if self._budget is None:
            return False
        held = self.held + self._idle - self._prefixes.positions_below(kept)
        return held + needed + HEADROOM > self._budget

    @property
    def held(self) -> int:
        """Positions of the live requests, those of their steps in the ring included. Safe from any thread."""
        return sum(len(request.ids) + 1 + len(request.guesses) for request in list(self.live.values()))

    @property
    def _idle(self) -> int:
        """Positions that no live request needs."""
        retained = sum(positions for _, positions in self._retained.values())
        return self.kept + retained + sum(request.sent for request in self._draining.values())

    def _fits(self, request: AnyRequest) -> bool:
        if self._budget is None or not self.live:
            return True
        return self.held + self._needed(request) <= self._budget

    @staticmethod
    def _needed(request: Request) -> int:
        """Positions that must be free for a request to be admitted."""
        return min(len(request.ids) + HEADROOM, request.capacity)

    def _start(self, request: AnyRequest, match: _Match) -> None:
        request.reuses = 0
        self._retained.pop(request.id, None)
        if match.kept is not None:
            self._prefixes.reused(match.kept)
            if match.moves:
                self._prefixes.take(match.source)
            if match.length >= len(match.kept.ids) // 2:  # it continues the same text
                request.reuses = match.kept.reuses + 1
        request.sequence = match.source if match.moves else next(self._sequences)
        request.source = 0 if match.moves else match.source
        request.sent = request.settled = match.length
        self.live[request.sequence] = request
        request.turn = self._take_turn(request.owner)
        if not request.tokens:
            self.reuse.asked += request.prompt_tokens
            self.reuse.reused += match.length
            request.timing.reused = match.length

    def _keep(self, request: AnyRequest) -> None:
        if self._shares:
            self._freed += self._prefixes.keep(
                request.sequence, request.owner, request.ids[: request.sent], request.reuses
            )
        else:
            self._freed.append(request.sequence)
