"""Speculative decoding: guesses of the next tokens, which one trip round the ring verifies, and when they pay. Pure.

A guess counts only where sampling gives the same token (``EngineRequest.take``). Leviathan et al. 2023 give the
arithmetic: where a guess is right with probability a, a step with k guesses yields (1 - a^(k+1)) / (1 - a) tokens.

A step with guesses computes several rows, which a backend's kernels may round differently from a single row. Since the
number of guesses follows measured times, two greedy answers to one prompt can differ where two logits are nearly equal.
``--speculate off`` rules this cause out; micro-batches with other requests remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

MAX_GUESSES = 16
"""Guesses per step at most."""

_CONTEXT_SIZES = (3, 2)
"""How many of the latest tokens prompt lookup searches for, in order of preference."""
_PRIOR_RATE = 0.6
"""The share of right guesses that is assumed before any was tried."""
_DECAY = 0.85
"""The weight of earlier steps against the latest one, in the share of right guesses."""
_FIRST_REST_TOKENS = 16
_MAX_REST_TOKENS = 512
_SMOOTHING = 0.2


class Draft(Protocol):
    """Guesses for one request. Called by the engine thread."""

    def propose(self, ids: Sequence[int], max_guesses: int) -> Sequence[int]:
        """At most ``max_guesses`` tokens that may follow ``ids``, which begin with the ``ids`` of the last call."""

    def close(self) -> None:
        """Release everything; the request has ended."""


class PromptLookup:
    """Guesses that the text continues as it did after the last earlier occurrence of its latest tokens.

    Prompt lookup (Saxena 2023) needs no model, and is right where an answer repeats its prompt: editing, code.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, ids: Sequence[int], max_guesses: int) -> Sequence[int]:
        """``max_guesses`` tokens that followed the latest tokens of ``ids`` before; none where these are new."""
        for end in range(self._indexed + 1, len(ids)):
            for size in _CONTEXT_SIZES:
                if size <= end:
                    self._seen[tuple(ids[end - size : end])] = end
        self._indexed = max(self._indexed, len(ids) - 1)
        for size in _CONTEXT_SIZES:
            at = self._seen.get(tuple(ids[-size:]))
            if at is not None and len(ids) >= size:
                period = len(ids) - at
                return [ids[at + n % period] for n in range(max_guesses)]
        return ()

    def close(self) -> None:
        """Nothing to release."""


class SpeculationCosts:
    """Seconds of a step of one sequence, from sending to sampling: measured, and smoothed."""

    def __init__(self, plain_s: float, guess_s: float) -> None:
        """Until measured: ``plain_s`` seconds without guesses, and ``guess_s`` more per guess."""
        self.plain_s = plain_s
        self.guess_s = guess_s

    def observe(self, guesses: int, took_s: float) -> None:
        """Learn from a step with this number of ``guesses`` that took ``took_s`` seconds."""
        if guesses:
            self.guess_s += _SMOOTHING * (max(0.0, took_s - self.plain_s) / guesses - self.guess_s)
        else:
            self.plain_s += _SMOOTHING * (min(took_s, 4 * self.plain_s) - self.plain_s)


class SpeculationControl:
    """How many guesses pay for one request; after guesses that did not pay, none for a number of tokens."""

    def __init__(self) -> None:
        self._right, self._tried = _PRIOR_RATE, 1.0
        self._rest_tokens, self._next_rest_tokens = 0, _FIRST_REST_TOKENS

    def num_guesses(self, costs: SpeculationCosts) -> int:
        """The number of guesses with the most expected tokens per second; 0 where none pay."""
        if self._rest_tokens:
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
            self._rest_tokens = self._next_rest_tokens
            self._next_rest_tokens = min(2 * self._next_rest_tokens, _MAX_REST_TOKENS)
            self._right, self._tried = _PRIOR_RATE, 1.0
        return best

    def observe(self, guesses: int, tokens: int) -> None:
        """Learn from a step that carried ``guesses`` guesses and brought ``tokens`` tokens."""
        self._rest_tokens = max(0, self._rest_tokens - tokens)
        if guesses:
            right = tokens - 1
            self._right = _DECAY * self._right + right
            self._tried = _DECAY * self._tried + min(guesses, right + 1)
            if right == guesses:
                self._next_rest_tokens = _FIRST_REST_TOKENS
