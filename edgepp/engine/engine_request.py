"""A request as the engine knows it: its tokens so far, and what draws and guesses the next ones."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from edgepp.engine.draft import MOST_GUESSES, Draft, SpeculationControl, SpeculationCosts
from edgepp.engine.failure import failure
from edgepp.engine.prefix import Ids
from edgepp.engine.request import FinishReason, GenerateOptions, Timing
from edgepp.engine.sampling import REPETITION_CONTEXT, Sampled, Sampler
from edgepp.errors import EdgeppError
from edgepp.model.weights.checkpoint import Array

Event: TypeAlias = "int | FinishReason | EdgeppError"


@dataclass(eq=False)
class EngineRequest:
    """One prompt and what has become of it. Its queue yields token ids, then a reason or an error."""

    id: int
    """Its number in order of arrival."""
    owner: str
    """Who asks: only what the same owner asked before may serve it."""
    ids: list[int]
    """Prompt and answer so far."""
    prompt: int
    """Tokens of the prompt."""
    options: GenerateOptions
    eos: frozenset[int]
    timing: Timing
    sampler: Sampler
    draft: Draft | None = None
    speculation: SpeculationControl = field(default_factory=SpeculationControl)
    sequence: int = 0
    """Its number on the stages; another after each time that it had to begin again, and 0 while it waits."""
    source: int = 0
    """The sequence that it begins as a copy of, until the first of its steps has come back."""
    alone: bool = False
    """Whether it is to begin with nothing shared, since it failed once."""
    decoding: bool = False
    """Whether all that was known when it began has been computed."""
    guesses: tuple[int, ...] = ()
    """What its step in the ring carries beside its newest token."""
    sent_s: float = 0.0
    """When that step left."""
    sampled: list[Sampled] = field(default_factory=list)
    """One for each token, where log-probabilities were asked for."""
    events: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    _array: Ids = field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self.prompt

    @property
    def capacity(self) -> int:
        """The most positions that its caches may hold."""
        return self.prompt + self.options.max_tokens

    def guess(self, costs: SpeculationCosts, vocabulary: int) -> tuple[int, ...]:
        """Tokens that may well come next, as many as pay; only ids below ``vocabulary``, which the model has."""
        room = max(0, min(MOST_GUESSES, self.options.max_tokens - self.tokens - 1))
        guesses: Sequence[int] = self.sampler.forced()
        if not guesses and self.draft is not None:
            guesses = self._drafted(self.draft, min(room, self.speculation.most(costs)))
        return tuple(itertools.takewhile(lambda token: 0 <= token < vocabulary, guesses[:room]))

    def _drafted(self, draft: Draft, most: int) -> Sequence[int]:
        """What ``draft`` guesses. It never changes an answer, so one that fails is given up and the answer goes on."""
        try:
            return draft.propose(self.ids, most) if most > 0 else ()
        except BaseException as error:  # noqa: BLE001 - the boundary of one request's guesses
            failure(error, f"guessing for request {self.id}")
            self.stop_guessing()
            return ()

    def stop_guessing(self) -> None:
        """Have no more guesses, and release what makes them."""
        draft, self.draft = self.draft, None
        if draft is not None:
            try:
                draft.close()
            except BaseException as error:  # noqa: BLE001 - the answer is not to suffer from it
                failure(error, f"releasing the draft of request {self.id}")

    def take(self, logits: Array) -> tuple[list[int], FinishReason | None]:
        """Draw tokens from ``logits`` (1 + G, V): behind the newest token, and behind each of the G guesses.

        A guess counts only if it is what would have been drawn, so the answer is the same with and without. Returns
        the tokens, and why the answer ends with them if it does.

        Raises:
            EdgeppError: the logits are no numbers, or the constraint became too complex or allows no token.
        """
        drawn: list[int] = []
        self.timing.guessed += len(self.guesses)
        for row, guessed in zip(logits, (*self.guesses, None), strict=True):
            sampled = self.sampler(row, self.ids[-REPETITION_CONTEXT:])
            if sampled.token in self.eos:
                return drawn, "stop"
            self.timing.token(time.perf_counter())
            self.ids.append(sampled.token)
            drawn.append(sampled.token)
            if self.options.sampling.logprobs is not None:
                self.sampled.append(sampled)
            if self.sampler.done:
                return drawn, "stop"
            if self.tokens == self.options.max_tokens:
                return drawn, "length"
            if sampled.token != guessed:
                break
            self.timing.right += 1
        return drawn, None

    def known(self, length: int) -> Ids:
        """Its first ``length`` tokens."""
        if len(self._array) < length:
            self._array = np.asarray(self.ids, np.int32)
        return self._array[:length]
