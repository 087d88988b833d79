"""Carries out the steps of ``EngineCore``: embeds and sends them, and samples from the results.

Belongs to the engine thread. An error in the work for one request ends that request alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from edgepp.backend.base import EmbeddingAndHead
from edgepp.engine.core import EngineCore
from edgepp.engine.engine_request import AnswerEvent, EngineRequest, request_failure
from edgepp.engine.request import FinishReason
from edgepp.engine.request_isolation import GuardedEnds
from edgepp.engine.request_status import RequestStatus
from edgepp.engine.ring import HIDDEN_STATES, Failed, ResultKind, Returned, Ring, Send, SendBatch
from edgepp.engine.scheduler import MicroBatch, PrefillChunk
from edgepp.engine.speculation import GuessPlan, SpeculationCosts
from edgepp.engine.stage_speeds import StageSpeeds
from edgepp.engine.step_totals import StepTotals
from edgepp.engine.step_tracing import begin_step, embedded, ended, settle_guesses
from edgepp.engine.token_drawing import DrawingThread, Draws, StepResult, draw
from edgepp.error_boundary import failure
from edgepp.errors import EdgeppError, StageFault
from edgepp.model.weights.checkpoint import Array
from edgepp.tracing.request_trace import StepKind, StepTrace


class StepRunner:
    """Runs the steps of one core over one ring."""

    def __init__(
        self,
        core: EngineCore[EngineRequest],
        ring: Ring,
        ends: EmbeddingAndHead,
        drawing: DrawingThread | None = None,
        *,
        together: bool = False,
    ) -> None:
        """``ends`` are the model's embedding and output head; ``together`` lets one step carry several guesses.

        Tokens are drawn in the thread ``drawing`` while other steps go on; its owner gives ``take_drawn`` what came.
        """
        self._core, self._ring, self._ends = core, ring, GuardedEnds(ends)
        self._has_head = ring.stages[-1].has_head
        self._hops_s = sum(stage.hop_s for stage in ring.stages)
        plain_s = sum(stage.decode_s for stage in ring.stages) + self._hops_s
        guess_s, busiest_s = sum(one.prefill_s for one in ring.stages), max(one.decode_s for one in ring.stages)
        self._costs = SpeculationCosts(plain_s, guess_s, busiest_s)
        self._drawing = drawing
        self._together = together
        self.totals = StepTotals(len(ring.stages))
        """Where the time of steps went on this ring."""
        self.speeds = StageSpeeds(len(ring.stages), min(stage.chunk for stage in ring.stages))
        self._unpublished: list[tuple[EngineRequest, AnswerEvent]] = []

    def publish(self) -> None:
        """Hand events to their readers. Call this after sending the next step: a woken reader takes the interpreter."""
        for request, event in self._unpublished:
            request.events.put(event)
        self._unpublished.clear()

    def send_next(self) -> bool:
        """Send the core's next step, or else a guess; whether there was one."""
        match self._core.next_step():
            case None:
                return self._send_guess()
            case PrefillChunk() as chunk:
                self._send_chunk(chunk)
            case MicroBatch(sequences=(sequence,), positions=(position,), guesses=True):
                self._send_alone(self._core.live[sequence], position)
            case MicroBatch() as batch:
                self._send_batch(batch)
        return True

    def _embed(
        self, request: EngineRequest, kind: StepKind, tokens: Sequence[int], position: int
    ) -> tuple[Array, StepTrace | None]:
        """The hidden states (T, D) of T ``tokens`` from ``position`` on, and the record of the step that they begin."""
        trace = begin_step((request,), kind, position, len(tokens))
        hidden = self._ends.embed(tokens, position)
        embedded(trace)
        return hidden, trace

    def _send_chunk(self, chunk: PrefillChunk) -> None:
        request = self._core.live[chunk.sequence]
        name = request.request_id if request.source or not chunk.start else ""
        try:
            hidden, trace = self._embed(request, "prefill", request.ids[chunk.start : chunk.stop], chunk.start)
            scores = request.options.prompt_logprobs is not None  # by the head here: a chunk's logits are too large
            kind = self._result_for(request) if chunk.last and not scores else HIDDEN_STATES
            step = Send(
                chunk.sequence,
                chunk.start,
                request.capacity,
                len(hidden) if scores else int(chunk.last),
                hidden,
                request.source,
                kind,
                name,
                trace,
            )
            self._ring.send(step)
        except BaseException as error:  # noqa: BLE001 - the boundary of one request
            self._abandon(request, error, "sending its prompt")

    def _plan(self, request: EngineRequest) -> GuessPlan:
        return request.speculation.plan(self._costs, behind=self._ring.overlaps, together=self._together)

    def _send_guess(self) -> bool:
        """Send one guess as a step of its own; whether there was one."""
        for request in self._core.guessable():
            try:
                token = request.guess_behind(self._plan(request), self._ends.vocabulary)
            except BaseException as error:  # noqa: BLE001 - the boundary of one request
                self._abandon(request, error, "guessing its next token")
                continue
            if token is not None and self._send_behind(request, token):
                return True
        return False

    def _send_behind(self, request: EngineRequest, token: int) -> bool:
        """Send ``token`` behind all that is in the ring of a request; False where it cannot be embedded."""
        position = len(request.ids) + len(request.guesses)
        try:
            hidden, trace = self._embed(request, "guess", (token,), position)
        except BaseException as error:  # noqa: BLE001 - the answer goes on without guesses
            failure(error, f"embedding a guess for request {request.id}")
            request.stop_guessing()
            return False
        self._core.guessed(request, token)
        try:
            kind = self._result_for(request)
            self._ring.send(Send(request.sequence, position, request.capacity, 1, hidden, result=kind, trace=trace))
        except BaseException as error:  # noqa: BLE001 - the boundary of one request
            self._abandon(request, error, "sending a guess")
        return True

    def _send_alone(self, request: EngineRequest, position: int) -> None:
        """Send the newest token of one request, with guesses in the same step where that pays and is allowed."""
        request.speculation.sent_s = time.perf_counter()
        try:
            guesses = request.guesses_together(self._plan(request), self._ends.vocabulary) if self._together else ()
            tokens = (request.ids[position], *guesses)
            hidden, trace = self._embed(request, "decode", tokens, position)
            self._core.speculate(request, guesses)
            kind = self._result_for(request)
            self._ring.send(
                Send(request.sequence, position, request.capacity, len(tokens), hidden, result=kind, trace=trace)
            )
        except BaseException as error:  # noqa: BLE001 - the boundary of one request
            self._abandon(request, error, "sending its newest token")

    def _send_batch(self, batch: MicroBatch) -> None:
        live = self._core.live
        tokens = [live[at].ids[position] for at, position in zip(batch.sequences, batch.positions, strict=True)]
        requests = [live[sequence] for sequence in batch.sequences]
        trace = begin_step(requests, "decode", batch.positions[0], len(requests))
        rows = self._ends.embed_each(tokens, batch.positions)
        embedded(trace)
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
            kind = self._result_for(*(live[sequence] for sequence in sequences))
            self._ring.send(SendBatch(sequences, positions, np.concatenate(hidden), kind, trace))
        except BaseException as error:  # noqa: BLE001 - the boundary of this batch's requests
            for sequence in sequences:
                self._abandon(live[sequence], error, "sending its newest token")

    def _result_for(self, *requests: EngineRequest) -> ResultKind:
        """Form of the result of a step for ``requests``: the smallest form from which all of them can draw."""
        if not self._has_head:
            return HIDDEN_STATES
        counts = [request.sampler.candidates for request in requests]
        return ResultKind("candidates", max(counts)) if all(counts) else ResultKind("logits")

    def take(self, event: Returned | Failed) -> None:
        """Handle the result of a step, or the failure of a sequence."""
        if isinstance(event, Returned):
            self._returned(event)
        elif event.sequence is not None:
            self._failed(event.sequence, event.error)

    def _returned(self, event: Returned) -> None:
        """Sample for every request that the core names as due."""
        decodes = True
        for sequence in event.sequences:
            if (request := self._core.live.get(sequence)) is not None:
                decodes = request.status.decodes
                self._account(request, event)
                if len(event.sequences) == 1:
                    self.speeds.add(event.positions, len(request.ids), event.compute_s, decodes=decodes)
        rows = len(event.sequences) * event.positions
        self.totals.add_step(rows, event.compute_s, event.queue_s, event.ring_s, decodes=decodes)
        if len(event.sequences) == event.positions == 1:
            self._costs.observe_stages(event.compute_s)
        scoring = self._scoring(event)
        start = 0 if scoring is None else scoring.settled
        due = self._core.returned(event.sequences, event.positions, event.compute_s)
        if scoring is not None:
            last_row = (slice(len(event.rows) - 1, len(event.rows)),) if due else ()
            result = StepResult((scoring,), last_row, event.rows, event.result, self._ring.stages[-1], start)
            self._draw(result, beside=True)
            return
        if not due:
            return
        requests, parts = zip(*due, strict=True)
        last = self._ring.stages[-1]
        if parts[-1].stop > len(event.rows):
            self.take_drawn([(one, StageFault(f"{last} returned too few rows")) for one in requests])
            return
        self._draw(StepResult(requests, parts, event.rows, event.result, last), beside=self._pays_beside(requests))

    def _scoring(self, event: Returned) -> EngineRequest | None:
        """The request of whose prompt ``event`` is a chunk, if the tokens of that prompt are to be scored."""
        request = self._core.live.get(event.sequences[0])
        if request is None or not request.steps_in_ring or request.status.decodes:
            return None
        return None if request.options.prompt_logprobs is None else request

    def _draw(self, result: StepResult, *, beside: bool) -> None:
        """Draw in the thread for that if there is one and ``beside`` says so; steps of one prompt all go one way."""
        if self._drawing is not None and beside:
            self._drawing.put(result)
        else:
            began_s = time.perf_counter()
            draws = draw(self._ends, result)
            self.totals.add_head(time.perf_counter() - began_s)
            self.take_drawn(draws)

    def _pays_beside(self, requests: Sequence[EngineRequest]) -> bool:
        """Whether other steps go on while tokens are drawn, and no step of ``requests`` waits for these tokens."""
        return not self._core.is_idle and not any(request.guesses for request in requests)

    def take_drawn(self, draws: Draws) -> None:
        """Add tokens to the answers of requests that have not ended meanwhile."""
        for request, drawn in draws:
            if request.status is RequestStatus.FINISHED:
                continue
            if isinstance(drawn, BaseException):
                self._abandon(request, drawn, "drawing its next token")
                continue
            guesses = request.guesses
            request.take(drawn)
            if not drawn.drew:
                continue
            self._unpublished += [(request, sampled.token) for sampled in drawn.tokens]
            request.speculation.learn(request, self._costs, len(drawn.tokens), drawn.right, time.perf_counter())
            if drawn.tokens:
                settle_guesses(request, guesses)
                self.totals.add_tokens(len(drawn.tokens))
                self._core.sampled(request)
            if drawn.reason is not None:
                self.end(request, drawn.reason)

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
        ended(request, event if isinstance(event, str) else type(event).__name__)
        request.stop_guessing()

    def _abandon(self, request: EngineRequest, error: BaseException, doing: str) -> None:
        """End one request whose step failed. Its sequence is freed, since the stages may hold wrong values."""
        self.end(request, request_failure(error, request.id, doing), keep=False)

    def _failed(self, sequence: int, error: EdgeppError) -> None:
        """Handle a sequence that the stages have dropped."""
        request = self._core.failed(sequence)
        if request is not None:
            self.end(request, error, keep=False)
