"""A token from logits, in numpy.

The filters are mlx-lm's, in mlx-lm's order, and a test holds them to it. Its sampler itself is not used: it draws from
one generator for the whole process, so that a request's seed would not reproduce beside another request, and on Linux
it compiles itself with a C++ compiler that a user may not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepp.engine.request import SamplingOptions

Logits = npt.NDArray[np.float32]

REPETITION_CONTEXT = 20
"""How many of the latest tokens a repetition penalty looks at, as in mlx-lm."""


class Sampler:
    """Chooses the tokens of one request."""

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)

    def __call__(self, logits: Logits, context: Sequence[int]) -> int:
        """The next token's id, from ``logits`` (V,) and the token ids so far."""
        options = self._options
        if options.repetition_penalty != 1.0:
            logits = penalise_repetition(logits, context[-REPETITION_CONTEXT:], options.repetition_penalty)
        if options.temperature == 0:
            return int(logits.argmax())
        logprobs = filtered(logits, options)
        kept = np.flatnonzero(logprobs > -np.inf)
        scaled = logprobs[kept].astype(np.float64) / options.temperature
        weights = np.exp(scaled - scaled.max()).cumsum()
        drawn = weights.searchsorted(self._random.random() * weights[-1], side="right")
        return int(kept[min(int(drawn), len(kept) - 1)])


def penalise_repetition(logits: Logits, recent: Sequence[int], penalty: float) -> Logits:
    """Make each id in ``recent`` less likely by the factor ``penalty`` (Keskar et al. 2019, section 4.1)."""
    if not recent:
        return logits
    logits = logits.copy()
    ids = np.unique(np.asarray(recent))
    seen = logits[ids]
    logits[ids] = np.where(seen < 0, seen * penalty, seen / penalty)
    return logits


def filtered(logits: Logits, options: SamplingOptions) -> npt.NDArray[Any]:
    """Log-probabilities (V,) of ``logits``, minus infinity where top-p, min-p or top-k rule a token out."""
    top = logits.max()
    logprobs: npt.NDArray[Any] = logits - (top + np.log(np.exp(logits - top).sum()))
    if options.top_p < 1.0:
        logprobs = _keep_from(logprobs, _top_p_floor(logprobs, options.top_p))
    if options.min_p > 0.0:
        logprobs = _keep_from(logprobs, logprobs.max() + np.float32(np.log(options.min_p)))
    if 0 < options.top_k < len(logprobs):
        logprobs = _keep_from(logprobs, np.partition(logprobs, -options.top_k)[-options.top_k])
    return logprobs


def _top_p_floor(logprobs: npt.NDArray[Any], top_p: float) -> Any:
    """The smallest log-probability among the likeliest tokens that together reach ``top_p``."""
    ordered = np.sort(logprobs)[::-1]
    reached = np.exp(ordered).cumsum()
    last = int(reached.searchsorted(top_p))
    floor: Any = ordered[min(last, len(ordered) - 1)]
    return floor


def _keep_from(logprobs: npt.NDArray[Any], floor: Any) -> npt.NDArray[Any]:
    kept: npt.NDArray[Any] = np.where(logprobs >= floor, logprobs, np.float32(-np.inf))
    return kept
