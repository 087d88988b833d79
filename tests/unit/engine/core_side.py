"""A core over modelled stages, whose steps come back when a test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgepp.engine.core import EngineCore
from edgepp.engine.request import Request
from edgepp.engine.request_status import TRANSITIONS, RequestStatus
from edgepp.engine.scheduler import MicroBatch, PrefillChunk, Step
from edgepp.engine.timing import Timing
from edgepp.errors import EdgeppError
from tests.builders.core_requests import make_request

TEXTS = ([n % 7 for n in range(120)], [n % 5 for n in range(120)], [n % 7 for n in range(40)] + [9] * 80)
ALLOWED = {(status, then) for (status, _), then in TRANSITIONS.items()}


@dataclass(frozen=True)
class Speed:
    chunk: int = 32
    context: int = 400
    prefill_s: float = 0.004
    decode_s: float = 0.05
    rewinds: bool = True


class Watched(Request):
    """A request that checks each change of its status against the table."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "status" and "status" in self.__dict__:
            assert (self.status, value) in ALLOWED
        super().__setattr__(name, value)


def watched(number: int, ids: Sequence[int], max_tokens: int, owner: str) -> Watched:
    return Watched(
        id=number, owner=owner, ids=list(ids), prompt_tokens=len(ids), max_tokens=max_tokens, timing=Timing(0.0)
    )


@dataclass(frozen=True)
class Guess:
    """A step that carries one guess of a sequence at ``position``."""

    sequence: int
    position: int

    @property
    def sequences(self) -> tuple[int, ...]:
        return (self.sequence,)


class Side:
    """A core and modelled stages: the positions of each sequence, and the steps in the ring."""

    def __init__(self, stages: int, budget: int | None, spare: int, *, rewinds: bool, eager: bool) -> None:
        self.core: EngineCore[Request] = EngineCore([Speed(rewinds=rewinds)] * stages, budget, spare)
        self.budget = budget
        self.eager = eager
        self.requests: dict[int, Request] = {}
        self.refused: set[int] = set()
        self.ring: deque[Step | Guess] = deque()
        self.drawing: deque[Request] = deque()
        """Requests whose next token is drawn later than their step comes back."""
        self.held: dict[int, int] = {}

    def add(self, request: Request) -> None:
        self.requests[request.id] = request
        try:
            self.core.add(request)
        except EdgeppError:
            self.refused.add(request.id)
            self.core.finish(request)

    def look(self) -> list[int]:
        """Admit; the ids of those that begin. ``eager``: also where the core knows that nothing can have changed."""
        first = min(self.core.live.values(), key=lambda request: request.turn, default=None)
        if self.eager:
            self.core._changed = True
        admitted = self.core.admit()
        for request in admitted:
            assert request not in self.drawing
            assert request.sent < len(request.ids)
            assert request.sent <= self.held.get(request.source or request.sequence, 0)
            assert all(request.sequence not in sequences_of(step) for step in self.ring), "steps of another are there"
            self.held[request.sequence] = request.sent
        sources = {request.source for request in self.core.live.values()}
        for sequence in self.core.freed():
            assert sequence not in self.core.live
            assert sequence not in sources
            self.held.pop(sequence, None)
        assert first is None or first.status is not RequestStatus.PREEMPTED, "the oldest request gave way"
        being_copied = {request.source for request in self.core.live.values()} - self.core.live.keys()
        total = sum(positions for sequence, positions in self.held.items() if sequence not in being_copied)
        assert self.budget is None or total <= self.budget
        return [request.id for request in admitted]

    def send(self, guesses: int) -> Step | Guess | None:
        """Send a step. So many ``guesses`` travel in the newest token's step where above 0; -1: each in its own."""
        step = self.core.next_step()
        if step is None:
            return self.guess() if guesses < 0 else None
        for sequence, position in starts_of(step).items():
            self.ring = deque(
                one for one in self.ring if not (isinstance(one, Guess) and voids(sequence, position, one))
            )
        self.ring.append(step)
        if isinstance(step, PrefillChunk):
            self.held[step.sequence] = step.stop
            return step
        for sequence, position in zip(step.sequences, step.positions, strict=True):
            self.held[sequence] = position + 1
        if step.guesses and len(step.sequences) == 1:
            request = self.core.live[step.sequences[0]]
            room = max(0, min(guesses, request.max_tokens - request.tokens - 1))
            self.core.speculate(request, (0,) * room)
        return step

    def guess(self) -> Guess | None:
        """Send a guess of the request that may send one, which is right for positions that 3 does not divide."""
        requests = self.core.guessable()
        if not requests:
            return None
        request = requests[0]
        step = Guess(request.sequence, len(request.ids) + len(request.guesses))
        self.core.guessed(request, step.position % 7 if step.position % 3 else 99)
        self.ring.append(step)
        self.held[request.sequence] = step.position + 1
        return step

    def give_back(self, right: int, *, ends: bool, later: bool = False) -> None:
        """The oldest step comes round; so many guesses of a lone request were ``right``; ``ends``: the answer does.

        Tokens of requests without guesses may be drawn ``later``, by ``draw``.
        """
        step = self.ring.popleft()
        sequences = sequences_of(step)
        positions = step.stop - step.start if isinstance(step, PrefillChunk) else 1
        if (lone := self.core.live.get(sequences[0])) is not None and isinstance(step, MicroBatch) and step.guesses:
            positions += 0 if lone.steps_in_ring > 1 else len(lone.guesses)
        for request, rows in self.core.returned(sequences, positions, (0.05,)):
            assert not isinstance(step, Guess) or step.position == len(request.ids) - 1, "a void step counted"
            assert rows.stop - rows.start == (1 if isinstance(step, PrefillChunk) else positions)
            if later and not request.guesses:
                self.drawing.append(request)
                continue
            if ends:
                self.core.finish(request)
                continue
            tokens = min(1 + min(right, positions - 1), request.max_tokens - request.tokens)
            self.drawn(request, 1 if isinstance(step, PrefillChunk) else tokens)

    def drawn(self, request: Request, tokens: int) -> None:
        """So many tokens of a request were drawn."""
        request.ids += [at % 7 for at in range(len(request.ids), len(request.ids) + tokens)]
        self.core.sampled(request)
        if request.sequence:
            self.held[request.sequence] = request.sent
        if request.tokens == request.max_tokens:
            self.core.finish(request)

    def draw(self) -> bool:
        """Draw the next token that was to be drawn later; whether there was one."""
        if not self.drawing:
            return False
        request = self.drawing.popleft()
        if request.status is not RequestStatus.FINISHED:
            self.drawn(request, 1)
        return True

    def live(self, which: int) -> Request | None:
        numbers = sorted(self.core.live)
        return self.core.live[numbers[which % len(numbers)]] if numbers else None


def starts_of(step: Step) -> dict[int, int]:
    if isinstance(step, PrefillChunk):
        return {step.sequence: step.start}
    return dict(zip(step.sequences, step.positions, strict=True))


def voids(sequence: int, position: int, guess: Guess) -> bool:
    """Whether a step that begins at ``position`` of a sequence makes an earlier step with a guess void."""
    return guess.sequence == sequence and guess.position >= position


def sequences_of(step: Step | Guess) -> tuple[int, ...]:
    return (step.sequence,) if isinstance(step, PrefillChunk) else step.sequences


def begun(core: EngineCore[Request], ids: Sequence[int] = (1, 2, 3, 4)) -> Request:
    """A request whose whole prompt is in the ring."""
    request = make_request(len(core.live) + 1, ids)
    core.add(request)
    assert core.admit() == [request]
    assert isinstance(core.next_step(), PrefillChunk)
    return request
