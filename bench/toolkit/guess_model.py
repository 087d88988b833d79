"""Event model of one request whose guesses follow each other through a pipeline: its token rate by measured costs.

Each process computes one frame after the other, and processes that compute at the same time share the cores. A frame
has one row, the newest token or a guess, and takes a hop to each process and back. Where the drawn token differs from
the guess, later frames are void: the token leaves at once, and a hop later all stages drop void frames and stop the one
that they compute. A draft that computes is one more process, which runs ahead of the newest token
and begins again after a wrong guess. Pure; random by seed.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class RingCosts:
    """Seconds of one decode step of one row, as a pipeline without guesses shows them."""

    stages_s: tuple[float, ...]
    """Computing time of each stage."""
    head_s: float
    """Seconds of the coordinator: sampling, sending, and the head where it has it."""
    hop_s: float
    """Seconds of one hop; a step takes one more hop than there are stages."""
    cores: float = math.inf
    """Cores that stages, coordinator and draft share."""
    draft_s: float = 0.0
    """Seconds of one guess; 0 for guesses that are there at once."""


def tokens_per_s(
    costs: RingCosts, acceptance: float, in_flight: int | None = None, *, tokens: int = 3000, seed: int = 0
) -> float:
    """Token rate where a guess is right with probability ``acceptance``, as a mean over ``tokens`` tokens.

    ``in_flight`` is the greatest number of frames in the ring, by default one per stage; 1 stands for no guesses.
    """
    return tokens / _GuessRing(costs, acceptance, in_flight or len(costs.stages_s), seed).run(tokens)


@dataclass(frozen=True)
class _Frame:
    position: int
    right: bool
    """Whether the frame carries the token that will be drawn for its position."""


@dataclass(frozen=True)
class _Void:
    """Tells a stage that all frames which are not in the ring any more are void."""


class _GuessRing:
    """The state of all processes, of which the last one is the coordinator."""

    def __init__(self, costs: RingCosts, acceptance: float, in_flight: int, seed: int) -> None:
        self._costs = costs
        self._acceptance = acceptance
        self._max_in_flight = in_flight
        self._draw = random.Random(seed)  # noqa: S311 - not a secret
        self._work_s = (*costs.stages_s, costs.head_s)
        self._queues: list[deque[_Frame]] = [deque() for _ in self._work_s]
        self._left_s: dict[int, float] = {}
        """Seconds of work that are left of the first frame of each queue, by process; none where a queue is empty."""
        self._hops: list[tuple[float, int, int, _Frame | _Void]] = []
        """What travels between processes: time of arrival, number of the hop, process, frame."""
        self._num_hops = 0
        self._in_ring: deque[_Frame] = deque()
        """Frames that are not void, oldest first."""
        self._now_s = 0.0
        self._drawn = 0
        self._draft = len(self._work_s)
        """The number of the draft's process."""
        self._ready: deque[bool] = deque()
        """Guesses behind the newest frame, oldest first: whether each is right."""
        self._draft_is_late = False
        """Whether the guess that the draft computes is void."""

    def run(self, tokens: int) -> float:
        """Draw so many tokens; returns the seconds."""
        self._send(_Frame(0, right=True))
        while self._drawn < tokens:
            share = min(1.0, self._costs.cores / len(self._left_s)) if self._left_s else 1.0
            done_s, process = min(((left / share, at) for at, left in self._left_s.items()), default=(math.inf, 0))
            arrives_s = self._hops[0][0] - self._now_s if self._hops else math.inf
            passed_s = min(done_s, arrives_s)
            self._now_s += passed_s
            for at in self._left_s:
                self._left_s[at] -= passed_s * share
            if arrives_s <= done_s:
                _, _, process, arrived = heapq.heappop(self._hops)
                self._drop_void(process) if isinstance(arrived, _Void) else self._arrive(process, arrived)
            else:
                self._computed(process)
        return self._now_s

    def _send(self, frame: _Frame) -> None:
        self._in_ring.append(frame)
        self._hop(0, frame)

    def _hop(self, process: int, what: _Frame | _Void) -> None:
        self._num_hops += 1
        heapq.heappush(self._hops, (self._now_s + self._costs.hop_s, self._num_hops, process, what))

    def _arrive(self, process: int, frame: _Frame) -> None:
        self._queues[process].append(frame)
        self._start(process)

    def _drop_void(self, process: int) -> None:
        """Drop the void frames of a stage, also the one that it computes."""
        queue = self._queues[process]
        computed = queue[0] if queue else None
        valid = deque(frame for frame in queue if any(frame is one for one in self._in_ring))
        if computed is not None and not (valid and valid[0] is computed):
            del self._left_s[process]
        self._queues[process] = valid
        self._start(process)

    def _start(self, process: int) -> None:
        """Begin with the first frame of a queue; the coordinator ignores void frames."""
        queue = self._queues[process]
        if process == len(self._work_s) - 1:
            while queue and process not in self._left_s and not any(queue[0] is frame for frame in self._in_ring):
                queue.popleft()
        if queue:
            self._left_s.setdefault(process, self._work_s[process])

    def _computed(self, process: int) -> None:
        if process == self._draft:
            self._guessed()
            return
        frame = self._queues[process].popleft()
        del self._left_s[process]
        if process == len(self._work_s) - 1:
            self._draw_token(frame)
        else:
            self._hop(process + 1, frame)
        self._start(process)

    def _draw_token(self, frame: _Frame) -> None:
        """Draw the token behind ``frame``, and send it unless its guess is in the ring."""
        self._drawn += 1
        self._in_ring.popleft()
        if not (self._in_ring and self._in_ring[0].right):
            self._in_ring.clear()
            self._ready.clear()
            self._draft_is_late = self._draft in self._left_s
            self._send(_Frame(frame.position + 1, right=True))
            for stage in range(len(self._costs.stages_s)):
                self._hop(stage, _Void())
        self._fill()

    def _guessed(self) -> None:
        """Note that the draft has computed a guess."""
        del self._left_s[self._draft]
        if not self._draft_is_late:
            self._ready.append(self._draw.random() < self._acceptance)
        self._draft_is_late = False
        self._fill()

    def _fill(self) -> None:
        """Send guesses that are ready while the ring has room, and let the draft go on."""
        while len(self._in_ring) < self._max_in_flight:
            if not self._costs.draft_s:
                self._ready.append(self._draw.random() < self._acceptance)
            if not self._ready:
                break
            self._send(_Frame(self._in_ring[-1].position + 1, self._ready.popleft()))
        if self._costs.draft_s and len(self._ready) < self._max_in_flight and self._max_in_flight > 1:
            self._left_s.setdefault(self._draft, self._costs.draft_s)
