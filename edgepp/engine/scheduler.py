"""Chooses the next step for the ring. Pure: no socket, no tensor, no clock.

A request is prefilled in chunks that follow each other without waiting, then decoded one token per step. Ready requests
travel in at most one micro-batch per stage, of about equal size, so that every stage has one to work on. While fewer
requests decode than there are stages, guesses of their next tokens fill the other stages, each as a step of its own.
Requests send their chunks in turn. While no request decodes, as many chunks are sent as keep every stage busy; else one
small chunk follows each micro-batch, so that no answer waits for a long prompt, and no prompt for answers to end.

The scheduler keeps the order of requests and counts their steps. Statuses of requests belong to ``EngineCore``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from edgepp.engine.request import Request

SPARE_CHUNKS = 2
"""Chunks in the ring beyond one per stage: stage 0 keeps busy while the coordinator is late."""
MAX_ROWS = 128
"""Sequences per micro-batch at most."""
MIN_ROWS = 2
"""Positions per chunk at least.

Kernels for one row round differently from kernels for several rows, which give each row the same result however many
there are. With two rows or more per chunk, a prompt's numbers depend neither on where the prompt is cut nor on how much
of it is reused.
"""


class ChunkLengths(Protocol):
    """Gives the lengths of chunks. Implemented by ``ChunkSizer``; called by ``Scheduler``."""

    @property
    def chunk(self) -> int:
        """Tokens of a chunk while no request decodes."""

    def interleaved(self, pressure: float) -> int:
        """Tokens of a chunk between decode steps; ``pressure`` is the waiting prompts per decoding request."""


@dataclass(frozen=True)
class PrefillChunk:
    """Send positions ``[start, stop)`` of a prompt; ``last`` asks for the hidden state of the last position."""

    sequence: int
    start: int
    stop: int
    last: bool


@dataclass(frozen=True)
class MicroBatch:
    """Send the newest token of each of ``sequences``, the i-th at ``positions[i]``.

    ``guesses`` says whether the step may carry guesses itself, if it has one sequence: while no more requests decode
    than there are stages, each travels alone.
    """

    sequences: tuple[int, ...]
    positions: tuple[int, ...]
    guesses: bool


Step = PrefillChunk | MicroBatch


class Scheduler:
    """Orders the steps of all admitted requests."""

    def __init__(self, stages: int, lengths: ChunkLengths, spare: int = 0) -> None:
        """Let ``spare`` more decode steps travel than there are ``stages``, while the coordinator works on one."""
        self._stages = stages
        self._slots = stages + spare
        self._lengths = lengths
        self._prefilling: deque[Request] = deque()
        self._ready: deque[Request] = deque()
        self._batches: list[set[int]] = []
        """Sequences of each micro-batch in the ring."""
        self._guesses: dict[int, int] = {}
        """Steps in the ring with one guess each, by sequence; only of those that have one there."""
        self._chunks: dict[int, int] = {}
        """Chunks in the ring, by sequence; only of those that have one there."""
        self._drawing: set[int] = set()
        """Sequences whose next token is being drawn."""
        self._chunk_next = True
        """Whether a micro-batch has gone since the last chunk."""

    def add(self, request: Request, *, decodes: bool = False) -> None:
        """Prefill a request, of whose ``ids`` the stages hold the first ``sent`` already, or decode at once.

        If it ``decodes``, all ``ids`` but the newest must be there; else at least ``MIN_ROWS`` must be left to compute,
        unless the request has fewer.
        """
        (self._ready if decodes else self._prefilling).append(request)

    def remove(self, request: Request) -> None:
        """Remove a request in any status. Its steps in the ring are no longer counted."""
        self._chunks.pop(request.sequence, None)
        self._guesses.pop(request.sequence, None)
        self._drawing.discard(request.sequence)
        self._left_batch(request.sequence)
        for queue in (self._prefilling, self._ready):
            if request in queue:
                queue.remove(request)

    def next_step(self) -> Step | None:
        """The step to send now; None while everything waits for the ring."""
        chunk = bool(self._prefilling) and self._chunk_may_go()
        due = chunk and self._chunk_next  # after each micro-batch, or prompts would wait while any request is ready
        if self._ready and self._decode_steps < self._slots and not due and not self._awaits_more:
            return self._decode()
        return self._prefill(self._prefilling.popleft()) if chunk else None

    def guessable(self) -> list[int]:
        """Sequences that may send a guess now as a step of its own, those with fewest guesses in the ring first.

        There are none while anything else could be sent, or prompts are computed. The guesses of several requests take
        no more than the free slots; a lone request may send as many as pay.
        """
        if self._ready or self._prefilling or self._chunks:
            return []
        if self._decode_steps >= self._slots and self._decoding > 1:
            return []
        alone = [next(iter(batch)) for batch in self._batches if len(batch) == 1]
        return sorted(alone, key=self.guesses_in_ring)

    def guessed(self, request: Request) -> None:
        """Note that a guess of a request was sent as a step of its own."""
        request.steps_in_ring += 1
        self._guesses[request.sequence] = self._guesses.get(request.sequence, 0) + 1

    def guesses_in_ring(self, sequence: int) -> int:
        """Steps in the ring that carry one guess of a sequence each."""
        return self._guesses.get(sequence, 0)

    def confirmed(self, request: Request) -> None:
        """Note that the first guess in the ring was right: its step is now the one with the newest token."""
        self._drawing.discard(request.sequence)
        self._guesses[request.sequence] -= 1
        if not self._guesses[request.sequence]:
            del self._guesses[request.sequence]
        self._batches.append({request.sequence})

    def void(self, request: Request) -> None:
        """Count the steps with guesses of a request no longer: their results mean nothing."""
        request.steps_in_ring -= self._guesses.pop(request.sequence, 0)

    def returned(self, request: Request) -> None:
        """Note that the oldest step of a request came back, which is not a guess."""
        request.steps_in_ring -= 1
        sequence = request.sequence
        if self._chunks.get(sequence):
            self._chunks[sequence] -= 1
            if not self._chunks[sequence]:
                del self._chunks[sequence]
        else:
            self._left_batch(sequence)

    def draws(self, request: Request) -> None:
        """Note that a request's next token is being drawn, until ``sampled`` or ``confirmed``."""
        request.drawing = True
        self._drawing.add(request.sequence)

    def sampled(self, request: Request) -> None:
        """Note that a request's ``ids`` have grown: all but the newest have been sent."""
        self._drawing.discard(request.sequence)
        request.sent = request.settled = len(request.ids) - 1
        self._ready.append(request)

    def catch_up(self, request: Request) -> None:
        """Decode a request whose ``ids`` go on beyond the step that came back: its next token is known already."""
        self._ready.append(request)

    @property
    def is_idle(self) -> bool:
        """Whether no step is in the ring, and none can be sent, until a token is drawn or a request added."""
        return not (self._batches or self._guesses or self._chunks or self._ready or self._prefilling)

    @property
    def _decode_steps(self) -> int:
        """Steps in the ring that are no chunks."""
        return len(self._batches) + sum(self._guesses.values())

    @property
    def _decoding(self) -> int:
        """The number of requests whose prompt has been computed."""
        return len(self._ready) + len(self._drawing) + sum(map(len, self._batches))

    @property
    def _rows(self) -> int:
        """Rows of a full micro-batch."""
        return min(-(-self._decoding // self._slots), MAX_ROWS)

    @property
    def _awaits_more(self) -> bool:
        """Whether a micro-batch had better wait for tokens that are being drawn: else small ones would stay small."""
        return bool(self._drawing) and len(self._ready) < self._rows

    def _chunk_may_go(self) -> bool:
        in_ring = sum(self._chunks.values())
        if not self._decoding:
            return in_ring < self._stages + SPARE_CHUNKS
        idle = in_ring + self._decode_steps + 1 < self._stages  # one more for the micro-batch at the coordinator
        return (self._chunk_next or idle) and in_ring < self._stages

    def _decode(self) -> MicroBatch:
        decoding = self._decoding
        requests = [self._ready.popleft() for _ in range(min(self._rows, len(self._ready)))]
        sequences = tuple(request.sequence for request in requests)
        positions = tuple(request.sent for request in requests)
        for request in requests:
            request.sent += 1
            request.steps_in_ring += 1
        self._batches.append(set(sequences))
        self._chunk_next = True
        newest = all(request.sent == len(request.ids) for request in requests)
        return MicroBatch(sequences, positions, newest and decoding <= self._stages)

    def _prefill(self, request: Request) -> PrefillChunk:
        start, prompt, decoding = request.sent, len(request.ids), self._decoding
        length = self._lengths.interleaved((1 + len(self._prefilling)) / decoding) if decoding else self._lengths.chunk
        stop = min(start + max(length, MIN_ROWS), prompt)
        if 0 < prompt - stop < MIN_ROWS:
            stop = prompt - MIN_ROWS if prompt - start >= 2 * MIN_ROWS else prompt
        request.sent = stop
        request.steps_in_ring += 1
        self._chunks[request.sequence] = self._chunks.get(request.sequence, 0) + 1
        self._chunk_next = False
        if stop < prompt:
            self._prefilling.append(request)
        return PrefillChunk(request.sequence, start, stop, stop == prompt)

    def _left_batch(self, sequence: int) -> None:
        for batch in self._batches:
            batch.discard(sequence)
        self._batches = [batch for batch in self._batches if batch]
