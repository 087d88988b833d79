"""What a model answers when mlx-lm runs it whole, in float32: the measure of every exactness test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model


@lru_cache(maxsize=2)
def whole_model(path: Path) -> Any:
    """mlx-lm's model with every floating parameter in float32; kept, so use it from one thread."""
    if not mx.metal.is_available():
        mx.disable_compile()
    model, _ = load_model(path, lazy=True)
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


def logits(path: Path, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits (T, V) after each of ``ids``, in one forward pass."""
    return np.array(whole_model(path)(mx.array([list(ids)]))[0].astype(mx.float32))


def greedy(path: Path, prompt_ids: Sequence[int], n: int) -> list[int]:
    """The ``n`` likeliest tokens one after the other; no token ends the answer."""
    model = whole_model(path)
    cache = make_prompt_cache(model)
    tokens: list[int] = []
    step = list(prompt_ids)
    for _ in range(n):
        token = int(mx.argmax(model(mx.array([step]), cache=cache)[0, -1]).item())
        tokens.append(token)
        step = [token]
    return tokens


def perplexity(path: Path, ids: Sequence[int]) -> float:
    """exp of the mean loss, in nats, of predicting each of ``ids`` but the first."""
    predicted = mx.array(logits(path, ids)[:-1])
    return float(mx.exp(nn.losses.cross_entropy(predicted, mx.array(list(ids[1:]))).mean()).item())
