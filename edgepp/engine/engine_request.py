"""A request in the engine thread: its state, its sampler and draft, and the queue that hands its tokens over."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from edgepp.engine.request import FinishReason, GenerateOptions, Request
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import REPETITION_CONTEXT, Sampled, Sampler
from edgepp.engine.speculation import MAX_GUESSES, Draft, SpeculationControl, SpeculationCosts
from edgepp.engine.timing import Recovery, RecoveryKind, StageTimes
from edgepp.error_boundary import failure
from edgepp.errors import EdgeppError
from edgepp.model.weights.checkpoint import Array

AnswerEvent: TypeAlias = "int | FinishReason | EdgeppError"


@dataclass(eq=False, kw_only=True)
class EngineRequest(Request):
    """A submitted request. ``events`` yields token ids, then a finish reason or an error."""

    options: GenerateOptions
    eos: frozenset[int]
    """Token ids that end the answer."""
    sampler: Sampler
    stages: tuple[StageInfo, ...] = ()
    """The stages that compute it; at its end, those that gave its last token."""
    recovery: tuple[RecoveryKind, float] | None = None
    """How its keys and values are rebuilt, and since when it pauses, by ``time.perf_counter``, until its next token."""
    draft: Draft | None = None
    speculation: SpeculationControl = field(default_factory=SpeculationControl)
    sent_s: float = 0.0
    """When the step in the ring was sent, by ``time.perf_counter``; 0 for a step with other requests."""
    sampled: list[Sampled] = field(default_factory=list)
    """One per token, if log-probabilities were requested."""
    events: queue.SimpleQueue[AnswerEvent] = field(default_factory=queue.SimpleQueue)

    def guess(self, costs: SpeculationCosts, vocabulary: int) -> tuple[int, ...]:
        """Guesses of the next tokens, as many as pay by ``costs``; all are ids below ``vocabulary``."""
        room = max(0, min(MAX_GUESSES, self.max_tokens - self.tokens - 1))
        guesses: Sequence[int] = self.sampler.forced()
        if not guesses and self.draft is not None:
            guesses = self._drafted(self.draft, min(room, self.speculation.num_guesses(costs)))
        return tuple(itertools.takewhile(lambda token: 0 <= token < vocabulary, guesses[:room]))

    def _drafted(self, draft: Draft, max_guesses: int) -> Sequence[int]:
        """At most ``max_guesses`` guesses. A draft that fails is dropped: no answer needs it."""
        try:
            return draft.propose(self.ids, max_guesses) if max_guesses > 0 else ()
        except BaseException as error:  # noqa: BLE001 - the boundary of one request's guesses
            failure(error, f"guessing for request {self.id}")
            self.stop_guessing()
            return ()

    def stop_guessing(self) -> None:
        """Release the draft; the request goes on without guesses."""
        draft, self.draft = self.draft, None
        if draft is not None:
            try:
                draft.close()
            except BaseException as error:  # noqa: BLE001 - the answer goes on without its draft
                failure(error, f"releasing the draft of request {self.id}")

    def take(self, logits: Array) -> tuple[list[int], FinishReason | None]:
        """Draw tokens from ``logits`` (1 + G, V): behind the newest token, and behind each of the G guesses.

        Drawing ends at the first guess that differs from the drawn token, so every token is drawn from the logits
        behind the answer itself. Returns the tokens, and the finish reason if the answer ends with them.

        Raises:
            EdgeppError: the logits are not numbers, or the constraint became too complex or allows no token.
        """
        drawn: list[int] = []
        self.timing.guessed += len(self.guesses)
        for row, guessed in zip(logits, (*self.guesses, None), strict=True):
            sampled = self.sampler(row, self.ids[-REPETITION_CONTEXT:])
            if sampled.token in self.eos:
                return drawn, "stop"
            self._note_token(time.perf_counter())
            self.ids.append(sampled.token)
            drawn.append(sampled.token)
            if self.options.sampling.logprobs is not None:
                self.sampled.append(sampled)
            if self.sampler.done:
                return drawn, "stop"
            if self.tokens == self.max_tokens:
                return drawn, "length"
            if sampled.token != guessed:
                break
            self.timing.right += 1
        return drawn, None

    def take_stages(self, stages: tuple[StageInfo, ...]) -> None:
        """Go on over other stages; the times on those before are dropped where their number differs."""
        if len(stages) != len(self.timing.stages):
            self.timing.stages = [StageTimes() for _ in stages]
        self.stages = stages

    def _note_token(self, now_s: float) -> None:
        self.timing.token(now_s)
        if self.recovery is not None:
            (how, began_s), self.recovery = self.recovery, None
            self.timing.recoveries.append(Recovery(how, now_s - began_s))

    def learn(self, costs: SpeculationCosts, tokens: int, now_s: float) -> None:
        """Let speculation learn from the sampled step, which brought ``tokens`` tokens, and ``costs`` from its time."""
        if self.status.decodes:
            self.speculation.observe(len(self.guesses), tokens)
            if self.sent_s:
                costs.observe(len(self.guesses), now_s - self.sent_s)
        self.sent_s = 0.0


def request_failure(error: BaseException, request: int, doing: str) -> EdgeppError:
    """``error`` with the id of the ``request`` that it ends; ``doing`` is named unless ``error`` is an EdgeppError."""
    found = failure(error, f"request {request}, {doing},")
    if found is error:
        found.args = (f"request {request}: {found}",)
    return found
