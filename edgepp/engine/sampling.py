"""Draws a token from logits, in numpy.

The filters and their order are mlx-lm's, and a test compares the two. mlx-lm's sampler itself is not used: it draws
from one generator per process, so a request's seed would not reproduce while another request runs, and on Linux it
compiles itself with a C++ compiler that a user may not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgepp.backend.base import RowLogits
from edgepp.backend.candidates import CandidateRow, likeliest, log_sum_exp
from edgepp.engine.constrained_decoding import Matcher
from edgepp.engine.request import SamplingOptions
from edgepp.errors import StageFault, UsageError

Logits = npt.NDArray[np.float32]

_GREEDY_BELOW = 1e-5  # as in vLLM: a quotient by less overflows

_DEPTHS = (5.0, 10.0)
"""How far below the greatest log-probability filters look before they look at all tokens, which takes far longer."""

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
"""Shift and factor of the two rounds of SplitMix64."""

REPETITION_CONTEXT = 20
"""How many of the latest tokens a repetition penalty looks at, as in mlx-lm."""


class Sampled(NamedTuple):
    """A drawn token and, if requested, its log-probability and the likeliest tokens.

    Log-probabilities are those of the model's distribution after penalties and bias, but before constraint, temperature
    and filters, as in mlx-lm. (OpenAI does not document this; vLLM's default leaves out penalties and bias too.)
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and its log-probability, likeliest first."""


class Sampler:
    """Draws the tokens of one request, and holds all state that drawing depends on.

    Each call draws one more token of the answer: penalties count the token, the generator and the constraint advance.
    So drawing depends neither on other requests nor on how tokens are batched, and a preempted request keeps its
    sampler.
    """

    def __init__(self, options: SamplingOptions, matcher: Matcher | None = None) -> None:
        self._options = options
        self._matcher = matcher
        self._random = np.random.default_rng(None if options.seed is None else options.seed % (1 << 64))
        self._offsets = bool(options.frequency_penalty or options.presence_penalty or options.logit_bias)
        takes_largest = (
            matcher is None
            and not self._offsets
            and options.temperature < _GREEDY_BELOW
            and options.repetition_penalty == 1.0
        )
        self.candidates = max(1, options.logprobs or 0) if takes_largest else 0
        """How many of the likeliest tokens, with the log-sum-exp of all logits, are enough to draw from; 0 where whole
        rows of logits are needed."""
        self._offset: Logits | None = None  # (V,): logit bias less penalties
        self._generated: set[int] = set()

    @property
    def done(self) -> bool:
        """Whether the constraint is met and allows no further token: the answer ends without an end token."""
        return self._matcher is not None and self._matcher.done

    def forced(self) -> list[int]:
        """Ids of the only tokens that the constraint allows next; often none."""
        return [] if self._matcher is None else self._matcher.forced()

    def __call__(self, row: RowLogits, context: Sequence[int]) -> Sampled:
        """The next token, from logits (V,) and the token ids so far, the last of ``context`` being the newest.

        In place of logits, as many ``candidates`` as are enough may be given.

        Raises:
            StageFault: the logits hold NaN or plus infinity, or nothing but minus infinity.
            UsageError: the logit bias names a token that the model does not have, or the constraint is too complex to
                follow, or allows only tokens that the model rules out.
        """
        options = self._options
        check_logits(row)
        if self.candidates and options.logprobs is None:
            return Sampled(int(row.argmax()))
        if isinstance(row, CandidateRow):
            return row_with_logprobs(row, options.logprobs or 0)
        logits: Logits = np.asarray(row)
        if options.repetition_penalty != 1.0:
            logits = penalise_repetition(logits, context[-REPETITION_CONTEXT:], options.repetition_penalty)
        if self._offsets:
            logits = logits + self._offset_of(len(logits))
        allowed = logits if self._matcher is None else self._matcher.mask(logits)
        if self._matcher is not None and allowed.max() == -np.inf:
            raise UsageError(
                "the constraint leaves no token that this model could give", "make the constraint less narrow"
            )
        token = self._choose(allowed)
        if self._offset is not None:
            self._penalise(token, self._offset)
        if self._matcher is not None:
            self._matcher.advance(token)
        return Sampled(token) if options.logprobs is None else with_logprobs(logits, token, options.logprobs)

    def _choose(self, logits: Logits) -> int:
        options = self._options
        if options.temperature < _GREEDY_BELOW:
            return int(logits.argmax())
        logprobs = filtered(logits, options)
        kept = np.flatnonzero(logprobs > -np.inf)
        scaled = logprobs[kept].astype(np.float64) / options.temperature
        weights = np.exp(scaled - scaled.max())
        key = int(self._random.integers(1 << 64, dtype=np.uint64))
        return int(kept[_winner(weights, uniform_numbers(key, kept))])

    def _offset_of(self, vocabulary: int) -> Logits:
        if self._offset is None:
            self._options.check_bias(vocabulary)
            offset = np.zeros(vocabulary, np.float32)
            for token, bias in self._options.logit_bias:
                offset[token] = bias
            self._offset = offset
        return self._offset

    def _penalise(self, token: int, offset: Logits) -> None:
        offset[token] -= self._options.frequency_penalty
        if token not in self._generated:
            self._generated.add(token)
            offset[token] -= self._options.presence_penalty


def uniform_numbers(key: int, tokens: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """One number between 0 and 1, both excluded, per token id, which depends on ``key`` and that id alone.

    They are those of the generator SplitMix64 (Steele, Lea, Flood 2014), of which any one can be computed without the
    others: so no token's number depends on which others the filters keep.
    """
    mixed = tokens.astype(np.uint64)
    mixed += np.uint64(1)
    mixed *= _GOLDEN_GAMMA
    mixed += np.uint64(key)
    for shift, factor in _MIXING:
        mixed ^= mixed >> shift
        mixed *= factor
    mixed ^= mixed >> np.uint64(31)
    mixed >>= np.uint64(12)
    numbers = mixed.astype(np.float64)
    numbers += 0.5
    numbers *= 2.0**-52
    return numbers


def _winner(weights: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]) -> int:
    """The index i of the greatest weight / -log(uniform): each with the probability weight / sum of weights.

    Only the two in front decide, so rounding changes the winner far less often than it moves a boundary in a sum of
    probabilities over the vocabulary. As -log(u) >= 1 - u, logarithms are taken only of those that may be in front.
    """
    heaviest = int(weights.argmax())
    in_front = weights[heaviest] / -np.log(uniform[heaviest])
    rivals = np.flatnonzero(weights >= in_front * (1.0 - uniform) * (1.0 - 1e-9))
    return int(rivals[(weights[rivals] / -np.log(uniform[rivals])).argmax()])


def check_logits(logits: RowLogits) -> None:
    """Check that ``logits`` (V,) give a distribution; minus infinity stands for a token that the model rules out.

    Raises:
        StageFault: the logits hold NaN or plus infinity, or nothing but minus infinity.
    """
    if not np.isfinite(logits.max()):  # the largest is NaN where any is
        raise StageFault(
            "the model's logits are not numbers or infinite, so no token can be chosen",
            "the model's file may be damaged, or its numbers too large for how it is computed: try --exact",
        )


def with_logprobs(logits: Logits, token: int, count: int) -> Sampled:
    """``token`` and the ``count`` likeliest tokens, each with its log-probability by ``logits`` (V,)."""
    logprobs = _log_softmax(logits)
    likely = likeliest(logits, count)  # by logits, as candidates are: log-probabilities of two may round to one
    top_logprobs = tuple((int(one), float(logprobs[one])) for one in likely if logprobs[one] > -np.inf)
    return Sampled(token, float(logprobs[token]), top_logprobs)


def row_with_logprobs(row: CandidateRow, count: int) -> Sampled:
    """The likeliest token and the ``count`` likeliest tokens, each with its log-probability."""
    (token, logprob), *_ = row.top_logprobs(1)
    return Sampled(token, logprob, row.top_logprobs(count))


def penalise_repetition(logits: Logits, recent: Sequence[int], penalty: float) -> Logits:
    """``logits`` (V,) with each id in ``recent`` less likely by the factor ``penalty`` (Keskar et al. 2019, 4.1)."""
    if not recent:
        return logits
    logits = logits.copy()
    ids = np.unique(np.asarray(recent))
    seen = logits[ids]
    with np.errstate(over="ignore"):
        logits[ids] = np.minimum(np.where(seen < 0, seen * penalty, seen / penalty), np.finfo(np.float32).max)
    return logits


def filtered(logits: Logits, options: SamplingOptions) -> npt.NDArray[Any]:
    """Log-probabilities (V,) of ``logits``, with minus infinity where top-p, min-p or top-k rule a token out."""
    logprobs = _log_softmax(logits)
    if options.top_p < 1.0:
        logprobs = _keep_from(logprobs, _top_p_floor(logprobs, options.top_p))
    if options.min_p > 0.0:
        logprobs = _keep_from(logprobs, logprobs.max() + np.float32(np.log(options.min_p)))
    if 0 < options.top_k < len(logprobs):
        logprobs = _keep_from(logprobs, _top_k_floor(logprobs, options.top_k))
    return logprobs


def _log_softmax(logits: Logits) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):  # logits as far apart as floats can be
        logprobs: npt.NDArray[Any] = logits - log_sum_exp(logits)
    return logprobs


def _top_p_floor(logprobs: npt.NDArray[Any], top_p: float) -> Any:
    """The smallest log-probability among the likeliest tokens that together reach ``top_p``."""
    for likely in _likeliest(logprobs):
        if len(likely) < len(logprobs) and np.exp(likely).sum() < top_p:
            continue
        ordered = np.sort(likely)[::-1]
        reached = np.exp(ordered).cumsum()
        last = int(reached.searchsorted(top_p))
        if last < len(ordered) or len(ordered) == len(logprobs):
            break
    floor: Any = ordered[min(last, len(ordered) - 1)]
    return floor


def _top_k_floor(logprobs: npt.NDArray[Any], top_k: int) -> Any:
    """The ``top_k``-th greatest log-probability, where there are more tokens."""
    likely = next(likely for likely in _likeliest(logprobs) if len(likely) >= top_k)
    floor: Any = np.partition(likely, -top_k)[-top_k]
    return floor


def _likeliest(logprobs: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The log-probabilities of few of the likeliest tokens, then of more, at last all ``logprobs`` (V,).

    Each array holds all that are greater than its least, so what follows from the greatest alone is the same in each.
    """
    top = logprobs.max()
    for depth in _DEPTHS:
        yield logprobs[logprobs >= top - np.float32(depth)]
    yield logprobs


def _keep_from(logprobs: npt.NDArray[Any], floor: Any) -> npt.NDArray[Any]:
    kept: npt.NDArray[Any] = np.where(logprobs >= floor, logprobs, np.float32(-np.inf))
    return kept
