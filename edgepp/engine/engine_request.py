"""A request in the engine thread: its state, its sampler and draft, and the queue that hands its tokens over."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from edgepp.backend.base import RowLogits
from edgepp.engine.request import FinishReason, GenerateOptions, Request
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import REPETITION_CONTEXT, Sampled, Sampler
from edgepp.engine.speculation import MAX_GUESSES, Draft, GuessPlan, SpeculationControl
from edgepp.engine.timing import Recovery, Regained, StageTimes
from edgepp.error_boundary import failure
from edgepp.errors import EdgeppError
from edgepp.tracing.request_trace import RequestTrace

AnswerEvent: TypeAlias = "int | FinishReason | EdgeppError"


@dataclass(frozen=True)
class ScoredTokens:
    """Log-probabilities of consecutive tokens of a prompt, by all tokens before each."""

    start: int
    """Place of the first one, from 1: nothing stands before the token at 0."""
    tokens: tuple[Sampled, ...]


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one request from one step."""

    tokens: tuple[Sampled, ...]
    right: int
    """Guesses that were right, and behind which the answer goes on."""
    reason: FinishReason | None
    """Why the answer ends with the tokens; None if it goes on."""
    end: Sampled | None = None
    """The token that ended the answer and is no part of it."""
    scored: ScoredTokens | None = None
    """Tokens of the prompt whose log-probabilities the step gave."""

    @property
    def drew(self) -> bool:
        """Whether the answer went on or ended; a chunk in mid-prompt only scores tokens of the prompt."""
        return bool(self.tokens) or self.reason is not None


@dataclass(eq=False, kw_only=True)
class EngineRequest(Request):
    """A submitted request. ``events`` yields token ids, then a finish reason or an error."""

    options: GenerateOptions
    eos: frozenset[int]
    """Token ids that end the answer."""
    sampler: Sampler
    stages: tuple[StageInfo, ...] = ()
    """The stages that compute it; at its end, those that gave its last token."""
    recovery: tuple[Regained, float] | None = None
    """What came of its keys and values, and since when it pauses, by ``time.perf_counter``, until its next token."""
    draft: Draft | None = None
    speculation: SpeculationControl = field(default_factory=SpeculationControl)
    sampled: list[Sampled] = field(default_factory=list)
    """One per token, if log-probabilities were requested."""
    end: Sampled | None = None
    """The token that ended the answer, if one did."""
    prompt_sampled: list[Sampled] = field(default_factory=list)
    """One per token of the prompt but the first, if its log-probabilities were requested; complete before the first
    token of the answer."""
    request_id: str = ""
    """The name of the request in logs."""
    trace: RequestTrace | None = None
    """Where its steps are recorded; None for a request that is not traced. Choices of one prompt share it."""
    queued_s: float = 0.0
    """Since when it waits to be admitted, by ``time.perf_counter``; 0 where it does not."""
    events: queue.SimpleQueue[AnswerEvent] = field(default_factory=queue.SimpleQueue)

    def guesses_together(self, plan: GuessPlan, vocabulary: int) -> tuple[int, ...]:
        """Guesses for the step of the newest token, as many as pay by ``plan``: token ids below ``vocabulary``."""
        room = max(0, min(MAX_GUESSES, self.room_to_guess))
        guesses: Sequence[int] = self.sampler.forced() or self._drafted(min(room, plan.together))
        return tuple(itertools.takewhile(lambda token: 0 <= token < vocabulary, guesses[:room]))

    def guess_behind(self, plan: GuessPlan, vocabulary: int) -> int | None:
        """The guess behind all that is in the ring, an id below ``vocabulary``; None where there is none or too many.

        A token that the constraint forces is right, so it travels whatever the ``plan``.
        """
        under_way = len(self.guesses)
        forced = self.sampler.forced()
        if len(forced) > under_way and tuple(forced[:under_way]) == self.guesses:
            return forced[under_way]
        found = self._drafted(1 if under_way < plan.behind else 0)
        return found[0] if found and 0 <= found[0] < vocabulary else None

    def _drafted(self, max_guesses: int) -> Sequence[int]:
        """At most ``max_guesses`` guesses behind those under way. A draft that fails is dropped: no answer needs it."""
        if self.draft is None or max_guesses <= 0:
            return ()
        try:
            text = [*self.ids, *self.guesses] if self.guesses else self.ids  # a long text is not copied for each token
            return self.draft.propose(text, max_guesses)
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

    def draw(self, logits: Iterable[RowLogits]) -> Drawn:
        """Draw tokens from ``logits``, 1 + G rows: behind the newest token, and behind each of G guesses in its step.

        Drawing ends at the first guess that differs from the drawn token, so every token is drawn from the logits
        behind the answer itself. Any thread may call this, until ``take`` adds what was drawn to the answer.

        Raises:
            EdgeppError: the logits are not numbers, or the constraint became too complex or allows no token.
        """
        drawn: list[Sampled] = []
        context = self.ids[-REPETITION_CONTEXT:]
        right = 0

        def done(reason: FinishReason | None, end: Sampled | None = None) -> Drawn:
            return Drawn(tuple(drawn), right, reason, end)

        for row, guessed in zip(logits, (*self.guesses, None), strict=False):  # further guesses have their own steps
            sampled = self.sampler(row, context)
            if sampled.token in self.eos:
                return done("stop", sampled)
            drawn.append(sampled)
            context.append(sampled.token)
            if self.sampler.done:
                return done("stop")
            if self.tokens + len(drawn) == self.max_tokens:
                return done("length")
            if sampled.token != guessed:
                break
            right += 1
        return done(None)

    def take(self, drawn: Drawn) -> None:
        """Add what was drawn to the answer."""
        for sampled in drawn.tokens:
            self._note_token(time.perf_counter())
            self.ids.append(sampled.token)
            if self.options.sampling.logprobs is not None:
                self.sampled.append(sampled)
        self.timing.right += drawn.right
        self.end = drawn.end
        if drawn.scored is not None:  # a prompt that was preempted is computed, and so scored, once more
            known = 1 + len(self.prompt_sampled) - drawn.scored.start
            self.prompt_sampled += drawn.scored.tokens[known:]

    def take_stages(self, stages: tuple[StageInfo, ...]) -> None:
        """Go on over other stages; the times on those before are dropped where their number differs."""
        if len(stages) != len(self.timing.stages):
            self.timing.stages = [StageTimes() for _ in stages]
        self.stages = stages

    def _note_token(self, now_s: float) -> None:
        self.timing.token(now_s)
        if self.recovery is not None:
            (regained, began_s), self.recovery = self.recovery, None
            self.timing.recoveries.append(Recovery(regained.how, now_s - began_s, regained.prefilled))


def request_failure(error: BaseException, request: int, doing: str) -> EdgeppError:
    """``error`` with the id of the ``request`` that it ends; ``doing`` is named unless ``error`` is an EdgeppError."""
    found = failure(error, f"request {request}, {doing},")
    if found is error:
        found.args = (f"request {request}: {found}",)
    return found
