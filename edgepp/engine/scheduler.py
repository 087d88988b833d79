"""Which step goes into the ring next. Pure: no socket, no tensor, no clock.

A request is prefilled in chunks that follow each other without waiting, then decodes one token a step, together with
others: the ready ones travel as at most one micro-batch a stage, of about equal size, so that every stage has one to
work on. Chunks go in turn between requests: where nobody decodes as many as keep every stage busy, else one small chunk
behind each micro-batch, so that nobody's stream waits for a long prompt, and no prompt for streams to end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from edgepp.errors import LocalProtocolError

SPARE_CHUNKS = 2
"""Chunks in the ring beyond one a stage: stage 0 keeps busy while the coordinator is late."""
MOST_ROWS = 128
"""Sequences of one micro-batch."""
LEAST_ROWS = 2
"""Positions of a prompt that one step computes at the least.

Kernels for one row round differently from those for several, whose rows do not depend on how many they are. So with two
rows or more in each chunk, a prompt's numbers depend neither on where it is cut nor on how much of it was held already.
"""


class Lengths(Protocol):
    """How many tokens of a prompt go in one step."""

    @property
    def chunk(self) -> int:
        """Where nobody decodes."""

    def beside(self, pressure: float) -> int:
        """Between decode steps, where so many prompts wait for each request that decodes."""


class Phase(Enum):
    """Where a request stands."""

    PREFILL = auto()
    """Chunks of its prompt are still to be sent."""
    RING = auto()
    """The step that brings its next token is in the ring."""
    READY = auto()
    """Its newest token waits to be sent."""


class Event(Enum):
    """What happens to a request."""

    CHUNK_SENT = auto()
    LAST_CHUNK_SENT = auto()
    TOKEN_SENT = auto()
    SAMPLED = auto()


_TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.PREFILL, Event.CHUNK_SENT): Phase.PREFILL,
    (Phase.PREFILL, Event.LAST_CHUNK_SENT): Phase.RING,
    (Phase.RING, Event.SAMPLED): Phase.READY,
    (Phase.READY, Event.TOKEN_SENT): Phase.RING,
}


@dataclass(frozen=True)
class Chunk:
    """Send positions ``[start, stop)`` of a request's prompt; ``last`` asks for the hidden state of the last one."""

    request: int
    start: int
    stop: int
    last: bool


@dataclass(frozen=True)
class MicroBatch:
    """Send the newest token of each of some requests; it belongs at its position.

    A single one may take guesses of what follows it along: where no more decode than there are stages, each goes alone.
    """

    requests: tuple[int, ...]
    positions: tuple[int, ...]
    guesses: bool


Step = Chunk | MicroBatch


@dataclass
class _Track:
    phase: Phase
    prompt: int
    sent: int
    """Positions that the stages hold, or will when the ring is empty."""
    chunks: int = 0
    """Prefill chunks in the ring."""
    batches: int = 0
    """Micro-batches with it in the ring: 0 or 1."""

    @property
    def decodes(self) -> bool:
        """Whether its prompt has been computed."""
        return self.phase is Phase.READY or self.batches > 0


class Scheduler:
    """Orders the steps of all live requests."""

    def __init__(self, stages: int, lengths: Lengths) -> None:
        self._stages = stages
        self._lengths = lengths
        self._tracks: dict[int, _Track] = {}
        self._prefilling: deque[int] = deque()
        self._ready: deque[int] = deque()
        self._batches: list[set[int]] = []
        self._chunk_next = True
        """Whether a micro-batch has gone since the last chunk."""

    def __len__(self) -> int:
        return len(self._tracks)

    def add(self, request: int, prompt: int, held: int = 0) -> None:
        """Admit a request whose prompt has ``prompt`` tokens, of which the stages hold the first ``held`` already.

        At least ``LEAST_ROWS`` are left to compute, unless the prompt itself is shorter.
        """
        self._tracks[request] = _Track(Phase.PREFILL, prompt, held)
        self._prefilling.append(request)

    def remove(self, request: int) -> int:
        """Forget a request, wherever it stands; how many of its steps are still in the ring."""
        track = self._tracks.pop(request, None)
        if track is None:
            return 0
        self._prefilling = deque(r for r in self._prefilling if r != request)
        self._ready = deque(r for r in self._ready if r != request)
        self._left_batch(request)
        return track.chunks + track.batches

    def sent(self, request: int) -> int:
        """Positions of a request that the stages hold, or will when the ring is empty."""
        return self._tracks[request].sent

    def next_step(self) -> Step | None:
        """The step to send now; None when everything waits for the ring."""
        chunk = bool(self._prefilling) and self._chunk_may_go()
        due = chunk and self._chunk_next  # behind each micro-batch, or prompts would wait for ever where some is ready
        if self._ready and len(self._batches) < self._stages and not due:
            return self._decode()
        return self._prefill(self._prefilling.popleft()) if chunk else None

    def returned(self, request: int) -> bool:
        """Note that the oldest step of a request came back; whether it brings a token to sample."""
        track = self._tracks[request]
        if track.chunks:
            track.chunks -= 1
        else:
            track.batches -= 1
            self._left_batch(request)
        return track.phase is Phase.RING and not track.chunks and not track.batches

    def sampled(self, request: int, tokens: int = 1) -> None:
        """Note that a request's next ``tokens`` are known, all but the newest of which were guessed and sent."""
        track = self._tracks[request]
        self._move(track, Event.SAMPLED)
        track.sent += tokens - 1
        self._ready.append(request)

    @property
    def _decoding(self) -> int:
        return sum(track.decodes for track in self._tracks.values())

    def _chunk_may_go(self) -> bool:
        in_ring = sum(track.chunks for track in self._tracks.values())
        if not self._decoding:
            return in_ring < self._stages + SPARE_CHUNKS
        idle = in_ring + len(self._batches) + 1 < self._stages  # one place is that of the batch at the coordinator
        return (self._chunk_next or idle) and in_ring < self._stages

    def _decode(self) -> MicroBatch:
        size = min(-(-self._decoding // self._stages), len(self._ready), MOST_ROWS)
        requests = tuple(self._ready.popleft() for _ in range(size))
        positions = []
        for request in requests:
            track = self._tracks[request]
            self._move(track, Event.TOKEN_SENT)
            positions.append(track.sent)
            track.sent += 1
            track.batches += 1
        self._batches.append(set(requests))
        self._chunk_next = True
        return MicroBatch(requests, tuple(positions), self._decoding <= self._stages)

    def _prefill(self, request: int) -> Chunk:
        track, decoding = self._tracks[request], self._decoding
        start = track.sent
        length = self._lengths.beside((1 + len(self._prefilling)) / decoding) if decoding else self._lengths.chunk
        stop = min(start + max(length, LEAST_ROWS), track.prompt)
        if 0 < track.prompt - stop < LEAST_ROWS:
            stop = track.prompt - LEAST_ROWS if track.prompt - start >= 2 * LEAST_ROWS else track.prompt
        last = stop == track.prompt
        self._move(track, Event.LAST_CHUNK_SENT if last else Event.CHUNK_SENT)
        track.sent = stop
        track.chunks += 1
        self._chunk_next = False
        if not last:
            self._prefilling.append(request)
        return Chunk(request, start, stop, last)

    def _left_batch(self, request: int) -> None:
        for batch in self._batches:
            batch.discard(request)
        self._batches = [batch for batch in self._batches if batch]

    @staticmethod
    def _move(track: _Track, event: Event) -> None:
        try:
            track.phase = _TRANSITIONS[track.phase, event]
        except KeyError:
            raise LocalProtocolError(f"{event.name} cannot happen to a request in {track.phase.name}") from None
