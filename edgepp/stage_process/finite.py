"""Check that hidden states are finite numbers, before they go on to other stages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgepp.model.weights.checkpoint import Array

_EXPONENTS: Mapping[str, int] = {"float16": 0x7C00, "bfloat16": 0x7F80}
"""Mask of the exponent bits, which are all set in NaN and infinity."""


def all_finite(hidden: Array) -> bool:
    """Whether ``hidden`` has neither NaN nor infinity. Called at every step, so it avoids conversions to float32."""
    exponent = _EXPONENTS.get(hidden.dtype.name)
    if exponent is None:
        return bool(np.isfinite(hidden).all())
    return not bool(((hidden.view(np.uint16) & exponent) == exponent).any())


def not_finite(received: Array) -> str:
    """Reason for a result that is not finite, from the received hidden states."""
    if not all_finite(received):
        return "the hidden states that the stage received are not finite numbers"
    return (
        "the hidden states of the stage's layers are not finite numbers: weights are damaged, or overflow their dtype"
    )
