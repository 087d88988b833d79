"""What a model answers when mlx-lm runs it whole, in float32: the measure of every exactness test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from edgepp.selftest import reference
from edgepp.selftest.reference import whole_model

__all__ = ["greedy", "logits", "perplexity", "whole_model"]


def greedy(path: Path, prompt_ids: Sequence[int], count: int) -> list[int]:
    """The ``count`` likeliest tokens one after the other; kept, since many tests compare with the same ones."""
    return list(_greedy(path, tuple(prompt_ids), count))


@lru_cache(maxsize=256)
def _greedy(path: Path, prompt_ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    return tuple(reference.greedy(path, prompt_ids, count))


def logits(path: Path, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits (T, V) after each of ``ids``, in one forward pass."""
    return np.array(whole_model(path)(mx.array([list(ids)]))[0].astype(mx.float32))


def perplexity(path: Path, ids: Sequence[int]) -> float:
    """exp of the mean loss, in nats, of predicting each of ``ids`` but the first."""
    predicted = mx.array(logits(path, ids)[:-1])
    return float(mx.exp(nn.losses.cross_entropy(predicted, mx.array(list(ids[1:]))).mean()).item())
