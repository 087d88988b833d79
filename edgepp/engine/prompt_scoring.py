"""Log-probabilities of a prompt's own tokens, from the hidden states that its prefill chunks return.

The row at position p gives the distribution of the token at p + 1, so the first token of a prompt has none. Rows go
through the output head few at a time, since a chunk's logits may take more memory than the model's embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepp.engine.engine_request import EngineRequest, ScoredTokens
from edgepp.engine.request_isolation import GuardedEnds
from edgepp.engine.sampling import Sampled, check_logits, with_logprobs
from edgepp.model.weights.checkpoint import Array

_ROWS = 32
"""Rows of logits at a time."""


def scored_tokens(
    ends: GuardedEnds, request: EngineRequest, start: int, rows: Array, source: object
) -> ScoredTokens | None:
    """The tokens of the prompt behind the positions ``[start, start + T)`` of ``rows`` (T, D); None for none.

    ``source`` is the stage that computed the rows, for errors.

    Raises:
        StageFault: the rows or their logits are not numbers.
        EdgeppError: the output head failed.
    """
    count = request.options.prompt_logprobs
    targets = request.ids[start + 1 : min(start + len(rows) + 1, request.prompt_tokens)]
    if count is None or not targets:
        return None
    tokens: list[Sampled] = []
    for at in range(0, len(targets), _ROWS):
        tokens += _scored(ends, rows[at : at + _ROWS], targets[at : at + _ROWS], count, source)
    return ScoredTokens(start + 1, tuple(tokens))


def _scored(ends: GuardedEnds, rows: Array, targets: Sequence[int], count: int, source: object) -> list[Sampled]:
    (logits,) = ends.logits(rows[: len(targets)], [slice(None)], source)
    if isinstance(logits, BaseException):
        raise logits
    found = []
    for row, target in zip(logits, targets, strict=True):
        check_logits(row)
        found.append(with_logprobs(np.asarray(row), target, count))
    return found
