"""Guesses of what comes next, so that one trip round the ring verifies several tokens; and when they pay. Pure.

A guess never changes an answer, only its speed (``Request.take``). Leviathan et al. 2023 give the arithmetic: where a
guess is right with probability a, a step with k guesses yields (1 - a^(k+1)) / (1 - a) tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

MAX_GUESSES = 16
"""Tokens guessed at a time."""

_SIZES = (3, 2)
_HOPE = 0.6
"""How often a guess is right, before any was tried."""
_FORGET = 0.85
_REST = 16
_MAX_REST_TOKENS = 512
_SMOOTHING = 0.2


class Draft(Protocol):
    """What guesses for one request."""

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """At most ``most`` tokens that may follow ``ids``, which begin with those of the call before."""

    def close(self) -> None:
        """The request has ended."""


class PromptLookup:
    """Guesses that the text goes on as it did where its last few tokens stood before (prompt lookup).

    Needs no model. It is right where an answer repeats its prompt: editing, extracting, code.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """See ``Draft``."""
        for end in range(self._indexed + 1, len(ids)):
            for size in _SIZES:
                if size <= end:
                    self._seen[tuple(ids[end - size : end])] = end
        self._indexed = max(self._indexed, len(ids) - 1)
        for size in _SIZES:
            at = self._seen.get(tuple(ids[-size:]))
            if at is not None and len(ids) >= size:
                period = len(ids) - at
                return [ids[at + n % period] for n in range(most)]
        return ()

    def close(self) -> None:
        """See ``Draft``."""


class SpeculationCosts:
    """What a step of one sequence takes, from sending to sampling: measured, and smoothed."""

    def __init__(self, plain_s: float, guess_s: float) -> None:
        """``plain_s`` seconds without guesses and ``guess_s`` more for each, until they have been measured."""
        self.plain_s = plain_s
        self.guess_s = guess_s

    def note(self, guesses: int, took_s: float) -> None:
        """Learn from a step with so many ``guesses``."""
        if guesses:
            self.guess_s += _SMOOTHING * (max(0.0, took_s - self.plain_s) / guesses - self.guess_s)
        else:
            self.plain_s += _SMOOTHING * (min(took_s, 4 * self.plain_s) - self.plain_s)


class SpeculationControl:
    """How many guesses pay for one request: none, after they were wrong, until it has rested for a while."""

    def __init__(self) -> None:
        self._right, self._tried = _HOPE, 1.0
        self._rest, self._next_rest = 0, _REST

    def most(self, costs: SpeculationCosts) -> int:
        """The number of guesses with which tokens are expected to come fastest; 0 where none pay."""
        if self._rest:
            return 0
        rate = self._right / self._tried
        best, best_tokens_per_s = 0, 1 / max(costs.plain_s, 1e-9)
        tokens = gain = 1.0
        for guesses in range(1, MAX_GUESSES + 1):
            gain *= rate
            tokens += gain
            tokens_per_s = tokens / max(costs.plain_s + guesses * costs.guess_s, 1e-9)
            if tokens_per_s > best_tokens_per_s:
                best, best_tokens_per_s = guesses, tokens_per_s
        if not best:
            self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, _MAX_REST_TOKENS)
            self._right, self._tried = _HOPE, 1.0
        return best

    def judged(self, guesses: int, tokens: int) -> None:
        """Learn from a step that carried ``guesses`` and brought ``tokens``."""
        self._rest = max(0, self._rest - tokens)
        if guesses:
            right = tokens - 1
            self._right = _FORGET * self._right + right
            self._tried = _FORGET * self._tried + min(guesses, right + 1)
            if right == guesses:
                self._next_rest = _REST
