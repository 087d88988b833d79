"""Who may begin, who waits, who must give way, and what is kept: the engine's KV positions. Pure.

All sequences together, live ones and those kept for their prefixes, hold at most ``budget`` positions. Kept ones give
way first, then the newest live request of the owner who holds most: it loses its keys and values, not its tokens, and
begins again when there is room. Owners take turns, and one with less than an equal share of the budget is made room
for. The live request that began first never gives way, so every request ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.prefix import LEAST, PrefixCache, common
from edgepp.engine.scheduler import LEAST_ROWS
from edgepp.errors import EdgeppError

MOST_WAITING = 256
"""Requests that wait for room; more are refused."""
HEADROOM = 64
"""Positions that must be free beside its own for a request to begin, lest it give way at once."""
_MOST_OWNERS = 4096
"""Owners whose turns are remembered."""


@dataclass
class Reuse:
    """How much of the prompts was not computed anew, in tokens."""

    asked: int = 0
    reused: int = 0


@dataclass(frozen=True)
class _Match:
    """What a request may begin with: ``length`` positions of ``source``; all of it ``moves`` or it is copied."""

    source: int = 0
    length: int = 0
    moves: bool = False


class Ledger:
    """Every request of an engine, by what it holds."""

    def __init__(self, budget: int | None, spare: int, sent: Callable[[int], int], *, shares: bool) -> None:
        """``budget`` positions in all; without one, ``spare`` are kept beside the live requests.

        ``sent`` tells how many positions of a live sequence the stages hold. Unless it ``shares``, nothing is kept.
        """
        self._budget = budget
        self._spare = spare
        self._sent = sent
        self._shares = shares
        self._numbers = itertools.count(1)
        self._waiting: list[EngineRequest] = []
        self._prefixes = PrefixCache()
        self._draining: dict[int, tuple[EngineRequest, int, int]] = {}
        self._freed: list[int] = []
        self._turns = itertools.count(1)
        self._turn: dict[str, int] = {}
        """When each owner had its last turn; who has waited longest comes first."""
        self._began: dict[int, int] = {}
        """The turn in which each live request began, by sequence."""
        self.live: dict[int, EngineRequest] = {}
        """By sequence."""
        self.reuse = Reuse()

    @property
    def waiting(self) -> tuple[EngineRequest, ...]:
        """Those that have not begun, in the order in which they came."""
        return tuple(self._waiting)

    @property
    def kept(self) -> int:
        """Positions kept for prompts to come."""
        return self._prefixes.positions

    def wait(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            EdgeppError: too many are waiting.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise EdgeppError(f"{MOST_WAITING} requests are waiting already", "ask again later")
        self._waiting.append(request)

    def withdraw(self, request: EngineRequest) -> bool:
        """Forget a request that waits; whether it did."""
        if request in self._waiting:
            self._waiting.remove(request)
            return True
        return False

    def begin(self) -> Iterator[tuple[EngineRequest, int]]:
        """Those whose turn it is, as far as the budget goes, and how many positions of each are computed already.

        These are its sequence's own, or to be copied from its source.
        """
        passed: set[int] = set()
        while (request := self._next(passed)) is not None:
            if not self._fits(request):
                return
            match = self._match(request)
            if match is None:
                passed.add(request.id)  # what it will share is being computed just now
                continue
            self._waiting.remove(request)
            yield self._start(request, match)

    def leave(self, request: EngineRequest, held: int, in_ring: int) -> None:
        """A live request has ended: the stages hold ``held`` positions, and ``in_ring`` steps of it are in the ring."""
        del self.live[request.sequence], self._began[request.sequence]
        if request.source and not in_ring:
            held = 0  # it was never copied
        if in_ring and self._shares:
            self._draining[request.sequence] = (request, held, in_ring)
        else:
            self._keep(request, held)

    def returned(self, sequence: int) -> None:
        """A step of an ended request came back; when it was the last, the sequence may serve others."""
        if sequence in self._draining:
            request, held, in_ring = self._draining.pop(sequence)
            if in_ring > 1:
                self._draining[sequence] = (request, held, in_ring - 1)
            else:
                self._keep(request, held)

    def lost(self, sequence: int) -> EngineRequest | None:
        """The stages have no use for a sequence any more; its request if it was live."""
        self._draining.pop(sequence, None)
        self._freed.append(sequence)
        self._began.pop(sequence, None)
        return self.live.pop(sequence, None)

    def again(self, request: EngineRequest) -> None:
        """A live request loses what the stages hold of it and waits to begin anew, before those that came later."""
        self.lost(request.sequence)
        request.sequence, request.source, request.guesses, request.decoding = 0, 0, (), False
        later = [at for at, other in enumerate(self._waiting) if other.id > request.id]
        self._waiting.insert(later[0] if later else len(self._waiting), request)

    def make_room(self) -> Iterator[EngineRequest]:
        """Let those give way, each yielded before it waits again, who keep an owner from its share of the budget."""
        request = self._next(set())
        while request is not None and not self._fits(request):
            last = self._debtor(request)
            if last is None:
                return
            yield last
            self.again(last)
            self._take_turn(last.owner)

    def squeeze(self) -> Iterator[EngineRequest]:
        """Bring what is held within the budget; yields each who must give way for it, before it waits again."""
        while self._excess() > 0:
            if len(self._prefixes):
                self._freed.append(self._prefixes.evict())
            elif self._draining:
                self.lost(next(iter(self._draining)))
            elif len(self.live) > 1:
                last = self._greediest()
                yield last
                self.again(last)
            else:
                return

    def clear(self) -> bool:
        """Keep nothing for prompts to come; whether there was anything."""
        had = bool(len(self._prefixes))
        while len(self._prefixes):
            self._freed.append(self._prefixes.evict())
        return had

    def freed(self) -> list[int]:
        """Sequences that the stages are to forget, each named once; none that another is just being copied from."""
        sources = {request.source for request in self.live.values()}
        freed = [sequence for sequence in self._freed if sequence not in sources]
        self._freed = [sequence for sequence in self._freed if sequence in sources]
        return freed

    def _next(self, passed: set[int]) -> EngineRequest | None:
        """The oldest that waits of the owner who has least under way, and among equals has waited longest for a turn.

        Of one owner, who had begun already goes before all others.
        """
        held = self._by_owner()
        candidates = (request for request in self._waiting if request.id not in passed)

        def order(request: EngineRequest) -> tuple[int, int, bool, int]:
            return held.get(request.owner, 0), self._turn.get(request.owner, 0), not request.tokens, request.id

        return min(candidates, key=order, default=None)

    def _by_owner(self) -> dict[str, int]:
        """Positions that the live requests of each owner hold."""
        held: dict[str, int] = {}
        for request in self.live.values():
            held[request.owner] = held.get(request.owner, 0) + len(request.ids)
        return held

    def _greediest(self) -> EngineRequest:
        """The newest request of the owner who holds most, but never the one that began first."""
        first = min(self._began, key=self._began.__getitem__)
        held = self._by_owner()
        others = (request for request in self.live.values() if request.sequence != first)
        return max(others, key=lambda request: (held[request.owner], request.id))

    def _debtor(self, request: EngineRequest) -> EngineRequest | None:
        """Who is to give way so that ``request`` may begin: only for an owner within its share, and of one beyond it.

        The other one must not have less than that owner then, or it would be made room for in its turn.
        """
        if self._budget is None or len(self.live) < 2:
            return None
        held = self._by_owner()
        share = self._budget // len({*held, *(waiting.owner for waiting in self._waiting)})
        last, own = self._greediest(), held.get(request.owner, 0)
        if own + self._needed(request) > share or held[last.owner] <= share:
            return None
        return last if held[last.owner] - len(last.ids) >= own else None

    def _take_turn(self, owner: str) -> int:
        """Put ``owner`` behind all others."""
        self._turn.pop(owner, None)
        self._turn[owner] = next(self._turns)
        if len(self._turn) > _MOST_OWNERS:
            del self._turn[next(iter(self._turn))]
        return self._turn[owner]

    def _match(self, request: EngineRequest) -> _Match | None:
        """What a request may begin with; None where more of it will be there soon."""
        best = _Match()
        if not self._shares or request.alone:
            return best
        ids = request.known(max(0, len(request.ids) - LEAST_ROWS))  # the last is wanted, and goes with one more
        found = self._prefixes.find(request.owner, ids)
        if found is not None:
            kept, length = found
            best = _Match(kept.sequence, length, self._moves(len(kept.ids), length, len(ids)))
        for ended, held, _ in self._draining.values():
            if ended.owner == request.owner and common(ended.known(min(held, len(ids))), ids) > max(best.length, LEAST):
                return None
        for live in self.live.values():
            if live.owner != request.owner:
                continue
            sent = self._sent(live.sequence)
            shared = common(live.known(min(len(live.ids), len(ids))), ids)
            if min(shared, sent) > best.length and min(shared, sent) >= LEAST:
                best = _Match(live.sequence, min(shared, sent))
            if not live.decoding and shared > max(sent, best.length, LEAST):
                return None
        return best

    def _moves(self, kept: int, shared: int, needed: int) -> bool:
        """Whether a kept sequence goes over: the rest of it is little, or there is no room for both."""
        room = self._budget is None or self._held + self._idle + needed + HEADROOM <= self._budget
        return not room or kept - shared <= kept // 4

    @property
    def _held(self) -> int:
        """Positions of the live requests, with their step in the ring."""
        return sum(len(request.ids) + 1 + len(request.guesses) for request in self.live.values())

    def _fits(self, request: EngineRequest) -> bool:
        if self._budget is None or not self.live:
            return True
        return self._held + self._needed(request) <= self._budget

    @staticmethod
    def _needed(request: EngineRequest) -> int:
        """Positions that must be free for a request to begin."""
        return min(len(request.ids) + HEADROOM, request.capacity)

    def _start(self, request: EngineRequest, match: _Match) -> tuple[EngineRequest, int]:
        if match.moves:
            self._prefixes.take(match.source)
            request.sequence = match.source
        else:
            request.sequence = next(self._numbers)
        self.live[request.sequence] = request
        self._began[request.sequence] = self._take_turn(request.owner)
        if not request.tokens:
            self.reuse.asked += request.prompt
            self.reuse.reused += match.length
            request.timing.reused = match.length
        request.source = 0 if match.moves else match.source
        return request, match.length

    def _keep(self, request: EngineRequest, held: int) -> None:
        if self._shares:
            self._freed += self._prefixes.keep(request.sequence, request.owner, request.ids[:held])
        else:
            self._freed.append(request.sequence)

    @property
    def _idle(self) -> int:
        """Positions that nobody's answer needs."""
        return self.kept + sum(held for _, held, _ in self._draining.values())

    def _excess(self) -> int:
        if self._budget is None:
            return self._idle - self._spare
        return self._held + self._idle - self._budget
