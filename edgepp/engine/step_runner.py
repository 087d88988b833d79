"""Carries out the steps of ``EngineCore``: embeds and sends them, and samples from the results.

Belongs to the engine thread. An error in the work for one request ends that request alone.
"""

from __future__ import annotations

import time

import numpy as np

from edgepp.backend.base import EmbeddingAndHead
from edgepp.engine.core import EngineCore
from edgepp.engine.engine_request import AnswerEvent, EngineRequest, request_failure
from edgepp.engine.request import FinishReason
from edgepp.engine.request_isolation import GuardedEnds, Rows
from edgepp.engine.ring import Failed, Returned, Ring, Send, SendBatch
from edgepp.engine.scheduler import MicroBatch, PrefillChunk
from edgepp.engine.speculation import SpeculationCosts
from edgepp.errors import EdgeppError, StageFault
from edgepp.model.weights.checkpoint import Array


class StepRunner:
    """Runs the steps of one core over one ring."""

    def __init__(self, core: EngineCore[EngineRequest], ring: Ring, ends: EmbeddingAndHead) -> None:
        """``ends`` are the model's embedding and output head."""
        self._core, self._ring, self._ends = core, ring, GuardedEnds(ends)
        self._hops_s = sum(stage.hop_s for stage in ring.stages)
        plain_s = sum(stage.decode_s for stage in ring.stages) + self._hops_s
        self._costs = SpeculationCosts(plain_s, sum(stage.prefill_s for stage in ring.stages))
        self._unpublished: list[tuple[EngineRequest, AnswerEvent]] = []

    def publish(self) -> None:
        """Hand events to their readers. Call this after sending the next step: a woken reader takes the interpreter."""
        for request, event in self._unpublished:
            request.events.put(event)
        self._unpublished.clear()

    def send_next(self) -> bool:
        """Send the core's next step; whether there was one."""
        match self._core.next_step():
            case None:
                return False
            case PrefillChunk() as chunk:
                self._send_chunk(chunk)
            case MicroBatch(sequences=(sequence,), positions=(position,), guesses=True):
                self._send_guesses(self._core.live[sequence], position)
            case MicroBatch() as batch:
                self._send_batch(batch)
        return True

    def _send_chunk(self, chunk: PrefillChunk) -> None:
        request = self._core.live[chunk.sequence]
        try:
            hidden = self._ends.embed(request.ids[chunk.start : chunk.stop], chunk.start)
            step = Send(chunk.sequence, chunk.start, request.capacity, int(chunk.last), hidden, request.source)
            self._ring.send(step)
        except BaseException as error:  # noqa: BLE001 - the boundary of one request
            self._abandon(request, error, "sending its prompt")

    def _send_guesses(self, request: EngineRequest, position: int) -> None:
        """Send the newest token with guesses of the next ones, which the same trip round the ring verifies."""
        request.sent_s = time.perf_counter()
        try:
            guesses = request.guess(self._costs, self._ends.vocabulary)
            tokens = (request.ids[position], *guesses)
            hidden = self._ends.embed(tokens, position)
            self._core.speculate(request, guesses)
            self._ring.send(Send(request.sequence, position, request.capacity, len(tokens), hidden))
        except BaseException as error:  # noqa: BLE001 - the boundary of one request
            self._abandon(request, error, "sending its newest token")

    def _send_batch(self, batch: MicroBatch) -> None:
        live = self._core.live
        tokens = [live[at].ids[position] for at, position in zip(batch.sequences, batch.positions, strict=True)]
        rows = self._ends.embed_each(tokens, batch.positions)
        good: list[tuple[int, int, Array]] = []
        for sequence, position, row in zip(batch.sequences, batch.positions, rows, strict=True):
            if isinstance(row, BaseException):
                self._abandon(live[sequence], row, "sending its newest token")
            else:
                good.append((sequence, position, row))
        if not good:
            return
        sequences, positions, hidden = zip(*good, strict=True)
        try:
            self._ring.send(SendBatch(sequences, positions, np.concatenate(hidden)))
        except BaseException as error:  # noqa: BLE001 - the boundary of this batch's requests
            for sequence in sequences:
                self._abandon(live[sequence], error, "sending its newest token")

    def take(self, event: Returned | Failed) -> None:
        """Handle the result of a step, or the failure of a sequence."""
        if isinstance(event, Returned):
            self._returned(event)
        elif event.sequence is not None:
            self._failed(event.sequence, event.error)

    def _returned(self, event: Returned) -> None:
        """Sample for every request that the core names as due."""
        for sequence in event.sequences:
            if (request := self._core.live.get(sequence)) is not None:
                self._account(request, event)
        due = self._core.returned(event.sequences, event.positions, event.compute_s)
        if not due:
            return
        requests, parts = zip(*due, strict=True)
        last = self._ring.stages[-1]
        if parts[-1].stop > len(event.hidden):
            for request in requests:
                self._failed(request.sequence, StageFault(f"{last} returned too few hidden states"))
            return
        for request, logits in zip(requests, self._ends.logits(event.hidden, parts, last), strict=True):
            self._sample(request, logits)

    def _sample(self, request: EngineRequest, logits: Rows) -> None:
        """Draw a request's next token, and one more per right guess."""
        try:
            if isinstance(logits, BaseException):
                raise logits
            tokens, reason = request.take(logits)
        except BaseException as error:  # noqa: BLE001 - the boundary of one request
            self._abandon(request, error, "drawing its next token")
            return
        self._unpublished += [(request, token) for token in tokens]
        request.learn(self._costs, len(tokens), time.perf_counter())
        if tokens:
            self._core.sampled(request)
        if reason is not None:
            self.end(request, reason)

    def _account(self, request: EngineRequest, event: Returned) -> None:
        """Add a step's seconds to the request's stages; seconds on the wire are split by the measured hops."""
        wire_s = max(0.0, event.ring_s - sum(event.compute_s))
        for times, stage, compute_s in zip(request.timing.stages, self._ring.stages, event.compute_s, strict=True):
            if request.status.decodes:
                times.decode_s += compute_s
                times.wire_s += wire_s * stage.hop_s / self._hops_s if self._hops_s else 0.0
            else:
                times.prefill_s += compute_s

    def end(self, request: EngineRequest, event: FinishReason | EdgeppError, *, keep: bool = True) -> None:
        """End a request with ``event``; ``keep`` its sequence for the prefixes of future prompts."""
        self._core.finish(request, keep=keep)
        self._ended(request, event)

    def cancel(self, request: EngineRequest) -> None:
        """End a request early; does nothing if it has ended."""
        if self._core.cancel(request):
            self._ended(request, "cancelled")

    def _ended(self, request: EngineRequest, event: FinishReason | EdgeppError) -> None:
        self._unpublished.append((request, event))
        request.stop_guessing()

    def _abandon(self, request: EngineRequest, error: BaseException, doing: str) -> None:
        """End one request whose step failed. Its sequence is freed, since the stages may hold wrong values."""
        self.end(request, request_failure(error, request.id, doing), keep=False)

    def _failed(self, sequence: int, error: EdgeppError) -> None:
        """Handle a sequence that the stages have dropped."""
        request = self._core.failed(sequence)
        if request is not None:
            self.end(request, error, keep=False)
