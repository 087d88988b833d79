"""Greedy tokens of mlx-lm in float32, to which exact arithmetic is held."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgepp.backend.device import has_gpu


def available() -> bool:
    """Whether mlx-lm is installed on this platform."""
    return find_spec("mlx_lm") is not None and find_spec("mlx") is not None


@lru_cache(maxsize=2)
def whole_model(path: Path) -> Any:
    """mlx-lm's model with every floating parameter in float32; kept, so use it from one thread."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    if not has_gpu():
        mx.disable_compile()  # on Linux it would call a C++ compiler for each kernel
    model, _ = load_model(path, lazy=True)
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


def greedy(path: Path, prompt_ids: Sequence[int], count: int) -> list[int]:
    """The ``count`` likeliest tokens one after the other; no token ends the answer."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    model = whole_model(path)
    cache = make_prompt_cache(model)
    tokens: list[int] = []
    step = list(prompt_ids)
    for _ in range(count):
        token = int(np.argmax(np.array(model(mx.array([step]), cache=cache)[0, -1])))
        tokens.append(token)
        step = [token]
    return tokens
