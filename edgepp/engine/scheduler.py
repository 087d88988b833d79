"""Which step goes into the ring next. Pure: no socket, no tensor, no clock.

A request is prefilled in chunks that follow each other without waiting, then decodes one token a step. Decode steps go
first, since a person waits for each; chunks fill what is left, in turn between requests, at most ``window`` of them in
the ring at once, which is enough to keep every stage busy and few enough to cancel quickly.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

from edgepp.errors import LocalProtocolError

_SPARE_CHUNKS = 2
"""Chunks in the ring beyond one a stage: stage 0 keeps busy while the coordinator is late."""


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
class Step:
    """Send token positions ``[start, stop)`` of a request; ``last`` asks for the hidden state of the last one."""

    request: int
    start: int
    stop: int
    last: bool


@dataclass
class _Track:
    phase: Phase
    prompt: int
    sent: int = 0
    chunks: int = 0
    """Prefill chunks in the ring."""


class Scheduler:
    """Orders the steps of all live requests."""

    def __init__(self, stages: int, chunk: int) -> None:
        self._chunk = chunk
        self._window = stages + _SPARE_CHUNKS
        self._tracks: dict[int, _Track] = {}
        self._prefilling: deque[int] = deque()
        self._ready: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._tracks)

    def add(self, request: int, prompt: int) -> None:
        """Admit a request whose prompt has ``prompt`` tokens."""
        self._tracks[request] = _Track(Phase.PREFILL, prompt)
        self._prefilling.append(request)

    def remove(self, request: int) -> None:
        """Forget a request, wherever it stands."""
        if self._tracks.pop(request, None) is not None:
            self._prefilling = deque(r for r in self._prefilling if r != request)
            self._ready = deque(r for r in self._ready if r != request)

    def next_step(self) -> Step | None:
        """The step to send now; None when everything waits for the ring."""
        if self._ready:
            return self._decode(self._ready.popleft())
        in_ring = sum(track.chunks for track in self._tracks.values())
        if self._prefilling and in_ring < self._window:
            return self._prefill(self._prefilling.popleft())
        return None

    def returned(self, request: int, end: int) -> bool:
        """Note that the step up to position ``end`` came back; whether it brings a token to sample."""
        track = self._tracks.get(request)
        if track is None:
            return False
        if end <= track.prompt:
            track.chunks -= 1
        return track.phase is Phase.RING and end == track.sent

    def sampled(self, request: int) -> None:
        """Note that a request's next token is known and is to be sent."""
        self._move(self._tracks[request], Event.SAMPLED)
        self._ready.append(request)

    def _decode(self, request: int) -> Step:
        track = self._tracks[request]
        self._move(track, Event.TOKEN_SENT)
        track.sent += 1
        return Step(request, track.sent - 1, track.sent, last=True)

    def _prefill(self, request: int) -> Step:
        track = self._tracks[request]
        start = track.sent
        stop = min(start + self._chunk, track.prompt)
        last = stop == track.prompt
        self._move(track, Event.LAST_CHUNK_SENT if last else Event.CHUNK_SENT)
        track.sent = stop
        track.chunks += 1
        if not last:
            self._prefilling.append(request)
        return Step(request, start, stop, last)

    @staticmethod
    def _move(track: _Track, event: Event) -> None:
        try:
            track.phase = _TRANSITIONS[track.phase, event]
        except KeyError:
            raise LocalProtocolError(f"{event.name} cannot happen to a request in {track.phase.name}") from None
