"""Speculative decoding: guesses of the next tokens, how they travel, and when they pay. Pure.

A guess counts only where sampling gives the same token (``EngineRequest.take``). A guess travels

- behind the newest token in a step of its own, so that one stage works on the guess while the next one still works on
  the token before. Every row is computed alone, by the same kernel as without guesses, so the answer is the same bit
  for bit. With a trip of T seconds and guesses that are right with probability a, two equal stages give a token every
  (1 - a / 2) T. The first guess that is wrong voids all steps behind it; or
- together with others in the newest token's step (``--speculate-together``), which one trip round the ring verifies.
  Leviathan et al. 2023 give the arithmetic: a step with k guesses yields (1 - a^(k+1)) / (1 - a) tokens. Kernels may
  round several rows differently from one row, and since the number of guesses follows measured times, two greedy
  answers to one prompt can then differ where two logits are nearly equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgepp.engine.request import Request

MAX_GUESSES = 16
"""Guesses of a request under way at most."""

_PRIOR_RATE = 0.6
"""The share of right guesses that is assumed before any was tried."""
_DECAY = 0.85
"""The weight of earlier steps against the latest one, in the share of right guesses."""
_FIRST_REST_TOKENS = 16
_MAX_REST_TOKENS = 512
_SMOOTHING = 0.2
_FORGETTING = 0.1
_MOST_TIMES = 2.0
"""How many times a plain trip a measured trip counts at most: a process that got no processor says nothing of steps."""
_LEAST_S = 1e-9
_ALMOST = 0.2
"""The part of a step that may be missing in a trip: waiting so long costs less than a stage that stands idle."""


class Draft(Protocol):
    """Guesses for one request. Called by the engine thread."""

    def propose(self, ids: Sequence[int], max_guesses: int) -> Sequence[int]:
        """At most ``max_guesses`` tokens that may follow ``ids``, of those that are known now.

        ``ids`` is the text so far with the guesses that are under way, so a later call may go back behind a guess that
        was wrong. The call neither waits nor computes for long.
        """

    def close(self) -> None:
        """Release everything; the request has ended."""


class SpeculationCosts:
    """Seconds of the decode steps of lone requests: measured, and smoothed."""

    def __init__(self, plain_s: float, guess_s: float, busiest_s: float) -> None:
        """Until measured: a trip takes ``plain_s``, ``guess_s`` more per guess in it, the slowest stage ``busiest_s``.

        A trip lasts from sending a step to sampling from its result.
        """
        self.plain_s = plain_s
        self.guess_s = guess_s
        self.busiest_s = busiest_s
        self._followed_s: dict[int, float] = {}
        """A trip of a step behind which so many guesses go: longer where these take processors, or a stage, from it."""

    def observe(self, guesses: int, took_s: float) -> None:
        """Learn from a trip of ``took_s`` seconds with ``guesses`` in the step, and nothing behind it."""
        if guesses:
            self.guess_s += _SMOOTHING * (max(0.0, took_s - self.plain_s) / guesses - self.guess_s)
        else:
            self.plain_s += _SMOOTHING * (min(took_s, _MOST_TIMES * self.plain_s) - self.plain_s)
            for behind, known_s in self._followed_s.items():  # what was measured under another load is forgotten
                self._followed_s[behind] = known_s + _FORGETTING * (self._expected_s(behind) - known_s)

    def observe_followed(self, guesses: int, took_s: float) -> None:
        """Learn from a trip of ``took_s`` seconds of a step with ``guesses`` behind it, which was none itself."""
        known_s = self._wrong_s(guesses)
        self._followed_s[guesses] = known_s + _SMOOTHING * (min(took_s, _MOST_TIMES * self.plain_s) - known_s)

    def observe_stages(self, compute_s: Sequence[float]) -> None:
        """Learn from a step of one row that took each stage its part of ``compute_s``."""
        self.busiest_s += _SMOOTHING * (max(compute_s) - self.busiest_s)

    def together_tokens_per_s(self, guesses: int, rate: float) -> float:
        """Expected rate with ``guesses`` in the newest token's step, each right with probability ``rate``."""
        tokens = sum(rate**n for n in range(guesses + 1))
        return tokens / max(self.plain_s + guesses * self.guess_s, _LEAST_S)

    def followed_tokens_per_s(self, guesses: int, rate: float) -> float:
        """Expected rate with ``guesses`` behind the newest token in steps of their own, right with ``rate`` each.

        A right guess comes round one step after the token before it; after a wrong one the next token takes a trip.
        """
        right_s = max(self.plain_s / (guesses + 1), self.busiest_s)
        return 1 / max(rate * right_s + (1 - rate) * self._wrong_s(guesses), _LEAST_S)

    @property
    def most_behind(self) -> int:
        """Guesses behind the newest token that fit into a trip; more would wait for the busiest stage."""
        steps = self.plain_s / max(self.busiest_s, _LEAST_S)
        return min(MAX_GUESSES, max(1, int(steps + _ALMOST) - 1))

    def _wrong_s(self, guesses: int) -> float:
        return self._followed_s.get(guesses, self._expected_s(guesses))

    def _expected_s(self, guesses: int) -> float:
        """A trip with ``guesses`` behind it, with the wait for a first stage that is at a void step."""
        queued_s = (guesses + 1) * self.busiest_s - self.plain_s
        return self.plain_s + min(self.busiest_s, max(0.0, queued_s))


@dataclass(frozen=True)
class GuessPlan:
    """How many guesses of a lone request travel, and how."""

    together: int = 0
    """Guesses in the step of the newest token."""
    behind: int = 0
    """Guesses behind that step, each in a step of its own: more than there are stages where links are slow."""


class SpeculationControl:
    """How many guesses pay for one request; after guesses that did not pay, none for a number of tokens."""

    def __init__(self) -> None:
        self._right, self._tried = _PRIOR_RATE, 1.0
        self._rest_tokens, self._next_rest_tokens = 0, _FIRST_REST_TOKENS
        self.sent_s = 0.0
        """When the newest token was sent alone; 0 where it was a guess, or sent with those of other requests."""

    def plan(self, costs: SpeculationCosts, *, behind: bool, together: bool) -> GuessPlan:
        """The plan with the most expected tokens per second.

        Guesses travel ``behind`` the newest token, or ``together`` with it, only where that is allowed.
        """
        if self._rest_tokens or not (behind or together):
            return GuessPlan()
        rate = self._right / self._tried
        best, best_tokens_per_s = GuessPlan(), costs.together_tokens_per_s(0, rate)
        for guesses in range(1, costs.most_behind + 1 if behind else 1):
            tokens_per_s = costs.followed_tokens_per_s(guesses, rate)
            if tokens_per_s > best_tokens_per_s:
                best, best_tokens_per_s = GuessPlan(behind=guesses), tokens_per_s
        for guesses in range(1, MAX_GUESSES + 1 if together else 1):
            tokens_per_s = costs.together_tokens_per_s(guesses, rate)
            if tokens_per_s > best_tokens_per_s:
                best, best_tokens_per_s = GuessPlan(together=guesses), tokens_per_s
        if best == GuessPlan():
            self._rest_tokens = self._next_rest_tokens
            self._next_rest_tokens = min(2 * self._next_rest_tokens, _MAX_REST_TOKENS)
            self._right, self._tried = _PRIOR_RATE, 1.0
        return best

    def learn(self, request: Request, costs: SpeculationCosts, tokens: int, right: int, now_s: float) -> None:
        """Learn from the step of ``request`` that was just sampled, as do ``costs``, before the core hears of it.

        The step brought ``tokens`` tokens, and ``right`` guesses were right.
        """
        sent_s, self.sent_s = self.sent_s, 0.0
        if not request.status.decodes:
            return
        followed, guesses = request.steps_in_ring > 0, len(request.guesses)
        self.observe(min(guesses, 1 if followed else right + 1), right, tokens)
        if sent_s and followed:
            costs.observe_followed(guesses, now_s - sent_s)
        elif sent_s:
            costs.observe(guesses, now_s - sent_s)

    def observe(self, tried: int, right: int, tokens: int) -> None:
        """Learn from a sampled step that brought ``tokens`` tokens: ``right`` of ``tried`` guesses were right.

        Guesses behind a wrong one do not count as tried.
        """
        self._rest_tokens = max(0, self._rest_tokens - tokens)
        if tried:
            self._right = _DECAY * self._right + right
            self._tried = _DECAY * self._tried + tried
            if right == tried:
                self._next_rest_tokens = _FIRST_REST_TOKENS
