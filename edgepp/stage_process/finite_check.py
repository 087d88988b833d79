"""Check that hidden states are finite numbers, before they go on to other stages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgepp.model.weights.checkpoint import Array

_INFINITY: Mapping[str, int] = {"float16": 0x7C00, "bfloat16": 0x7F80}
"""The bits of infinity. Those of a positive NaN are greater as an integer, and only the sign is more in the others."""
_SIGN = 0x8000


def all_finite(hidden: Array) -> bool:
    """Whether ``hidden`` has neither NaN nor infinity. Called at every step, so it avoids conversions to float32."""
    infinity = _INFINITY.get(hidden.dtype.name)
    if infinity is None or not hidden.size:
        return bool(np.isfinite(hidden).all())
    return bool(hidden.view(np.int16).max() < infinity and hidden.view(np.uint16).max() < _SIGN | infinity)


def not_finite(received: Array) -> str:
    """Reason for a result that is not finite, from the received hidden states."""
    if not all_finite(received):
        return "the hidden states that the stage received are not finite numbers"
    return (
        "the hidden states of the stage's layers are not finite numbers: weights are damaged, or overflow their dtype"
    )
