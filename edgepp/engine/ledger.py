"""KV positions: which request is admitted or preempted next, and which prefixes are kept. Pure.

All sequences together, live ones and those kept for their prefixes, hold at most ``budget`` positions. Kept sequences
are evicted first, those of least worth (``PrefixCache``) before others; then the newest live request of the owner who
holds most is preempted: it loses its keys and values, not its tokens, and is admitted again when there is room. Owners
take turns, and room is made for an owner with less than an equal share of the budget (``OwnerShares``). The live
request that was admitted first is never preempted, so every request ends.

The ledger decides and counts. Statuses belong to ``EngineCore``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Generic

from edgepp.engine.owner_shares import OwnerShares
from edgepp.engine.prefix_cache import KeptSequence, PrefixCache
from edgepp.engine.prefix_choice import SharedPrefix, choose_prefix
from edgepp.engine.request import AnyRequest, Request
from edgepp.engine.suspended_sequences import RetainedSequences, SuspendedSequence
from edgepp.engine.timing import Reuse
from edgepp.errors import Overloaded

MAX_WAITING = 256
"""Requests that may wait for room; more are refused."""
HEADROOM = 64
"""Positions that must be free beyond a request's own for its admission, so that it is not preempted at once."""


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
        self._retained = RetainedSequences()
        self._freed: list[int] = []
        self.live: dict[int, AnyRequest] = {}
        """Admitted requests by sequence."""
        self.waiting: list[AnyRequest] = []
        """Requests that wait for room, in order of arrival."""
        self._owners: OwnerShares[AnyRequest] = OwnerShares(self.live, self.waiting)
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
            self._freed += self._retained.drop(request)

    def admit(self) -> Iterator[AnyRequest]:
        """Give a sequence to each request whose turn it is, as far as the budget goes.

        The request's ``sent`` counts the positions that it has already, or that are to be copied from ``source``.
        """
        passed: set[int] = set()
        while (request := self._owners.next_waiting(passed)) is not None and self._fits(request):
            prefix = None if request.drawing else self._prefix_of(request)
            if prefix is None:
                passed.add(request.id)  # its next token, or the prefix that it will share, is being computed now
                continue
            self.waiting.remove(request)
            self._start(request, prefix)
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
            self._owners.take_turn(request.owner)

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
                self._retained.retain(request)
                suspended.append(SuspendedSequence.of(request))
            self._requeue(request)
        self.live.clear()
        kept = [SuspendedSequence(one.sequence, one.ids, len(one.ids)) for one in self._prefixes]
        return suspended + kept

    def resume(self, lengths: Mapping[int, int], spare: int, *, shares: bool) -> None:
        """Keep of each sequence the positions in ``lengths``; the other arguments are those of the constructor."""
        self._spare, self._shares = spare, shares
        for kept in self._prefixes:
            self._freed += self._prefixes.cut(kept.sequence, lengths.get(kept.sequence, 0))
        for request in self.waiting:
            self._freed += self._retained.shorten(request, lengths)

    def _requeue(self, request: AnyRequest) -> None:
        request.sequence, request.source, request.guesses = 0, 0, ()
        request.sent = request.settled = request.steps_in_ring = 0
        later = [at for at, other in enumerate(self.waiting) if other.id > request.id]
        self.waiting.insert(later[0] if later else len(self.waiting), request)

    def over_share(self) -> AnyRequest | None:
        """The live request to preempt so that the next owner gets its share of the budget; None if there is none."""
        request = self._owners.next_waiting()
        if request is None or self._budget is None or self._fits(request):
            return None
        return self._owners.over_share(request, self._needed(request), self._budget)

    def over_budget(self) -> AnyRequest | None:
        """The live request to preempt for the budget, after evicting kept sequences; None if that was enough."""
        while self.room < 0:
            if len(self._prefixes):
                self._freed.append(self._prefixes.evict())
            elif self._draining:
                self.forget(next(iter(self._draining)))
            elif len(self.live) > 1:
                return self._owners.greediest()
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

    def _prefix_of(self, request: AnyRequest) -> SharedPrefix | None:
        """What a request begins with: what was retained for it, or a prefix; None if that is being computed."""
        if (retained := self._retained.of(request)) is not None:
            return SharedPrefix(*retained, moves=True)
        if not self._shares or request.alone or not request.shares:
            return SharedPrefix()
        return choose_prefix(request, self._prefixes, self._draining.values(), self.live.values(), self._copy_fits)

    def _copy_fits(self, kept: KeptSequence, needed: int) -> bool:
        """Whether ``needed`` positions fit beside ``kept`` once all sequences worth less than ``kept`` are evicted."""
        if self._budget is None:
            return True
        held = self.held + self._idle - self._prefixes.positions_below(kept)
        return held + needed + HEADROOM <= self._budget

    @property
    def held(self) -> int:
        """Positions of the live requests, those of their steps in the ring included. Safe from any thread."""
        return sum(len(request.ids) + 1 + len(request.guesses) for request in list(self.live.values()))

    @property
    def _idle(self) -> int:
        """Positions that no live request needs."""
        return self.kept + self._retained.positions + sum(request.sent for request in self._draining.values())

    def _fits(self, request: AnyRequest) -> bool:
        if self._budget is None or not self.live:
            return True
        return self.held + self._needed(request) <= self._budget

    @staticmethod
    def _needed(request: Request) -> int:
        """Positions that must be free for a request to be admitted."""
        return min(len(request.ids) + HEADROOM, request.capacity)

    def _start(self, request: AnyRequest, prefix: SharedPrefix) -> None:
        request.reuses = 0
        self._retained.drop(request)
        if prefix.kept is not None:
            self._prefixes.reused(prefix.kept)
            if prefix.moves:
                self._prefixes.take(prefix.source)
            if prefix.length >= len(prefix.kept.ids) // 2:  # it continues the same text
                request.reuses = prefix.kept.reuses + 1
        request.sequence = prefix.source if prefix.moves else next(self._sequences)
        request.source = 0 if prefix.moves else prefix.source
        request.sent = request.settled = prefix.length
        self.live[request.sequence] = request
        request.turn = self._owners.take_turn(request.owner)
        if not request.tokens:
            self.reuse.asked += request.prompt_tokens
            self.reuse.reused += prefix.length
            request.timing.reused = prefix.length

    def _keep(self, request: AnyRequest) -> None:
        if self._shares:
            self._freed += self._prefixes.keep(
                request.sequence, request.owner, request.ids[: request.sent], request.reuses
            )
        else:
            self._freed.append(request.sequence)
