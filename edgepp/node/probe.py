"""A short built-in probe of how fast a stage is; it also warms the backend up."""

from __future__ import annotations

import time

import numpy as np

from edgepp.backend.base import StageModel
from edgepp.wire.codec import DTYPES

_BUDGET_S = 1.0
_SEQUENCE = -1


def measure_speed(model: StageModel) -> tuple[int, int]:
    """Microseconds (a token of a prefill chunk, a decode step), each at least 1; takes about a second at most."""
    decode_s = min(_time_step(model, 1) for _ in range(3))
    tokens = max(2, min(model.chunk, int(_BUDGET_S / decode_s)))
    prefill_s = min(_time_step(model, tokens) for _ in range(2)) / tokens
    return max(1, int(prefill_s * 1e6)), max(1, int(decode_s * 1e6))


def _time_step(model: StageModel, tokens: int) -> float:
    hidden = np.full((tokens, model.hidden_size), 0.1, DTYPES[model.dtype])
    model.open(_SEQUENCE, tokens)
    try:
        start = time.perf_counter()
        model.extend(_SEQUENCE, hidden)
        return time.perf_counter() - start
    finally:
        model.free(_SEQUENCE)
