"""Distributed equals local: every split of tiny random Llamas gives the tokens that mlx-lm gives on the whole model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepp.engine.request import GenerateOptions
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import LLAMA3_ROPE, TINY
from tests import reference
from tests.builders.checkpoints import Checkpoints
from tests.engines import Brake, collect, every_split, greedy_tokens, local_engine
from tests.waiting import PATIENCE_S

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tied": False},
    "one-kv-head": {"kv_heads": 1},
    "llama3-rope": {"rope_scaling": LLAMA3_ROPE},
    "4-bit": {"bits": 4, "group_size": 32, "dtype": "float16"},
    "8-bit": {"bits": 8, "group_size": 64, "tied": False},
    "bf16": {"dtype": "bfloat16"},
}
PROMPT_TOKENS = 140  # several chunks
GENERATED = 10


@pytest.fixture
def model(checkpoints: Checkpoints) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        settings = dict(VARIANTS[name])
        rope = settings.pop("rope_scaling", None)
        return checkpoints(replace(TINY, layers=5, **settings), rope_scaling=rope)

    return make


def _prompt(seed: int, tokens: int = PROMPT_TOKENS) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(3, TINY.vocabulary, tokens)]


@pytest.mark.parametrize("backend", ["mlx", "onnx"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_split_gives_the_whole_models_tokens(model: Callable[[str], Path], variant: str, backend: str) -> None:
    path, prompt = model(variant), _prompt(1)
    expected = reference.greedy(path, prompt, GENERATED)
    for split in every_split(5):
        with local_engine(path, split, [backend]) as engine:
            assert greedy_tokens(engine, prompt, GENERATED) == expected, f"split {[str(r) for r in split]}"


def test_backends_mix(model: Callable[[str], Path]) -> None:
    path, prompt = model("4-bit"), _prompt(2)
    expected = reference.greedy(path, prompt, GENERATED)
    split = (LayerRange(0, 2), LayerRange(2, 3), LayerRange(3, 5))
    for backends in (["mlx", "onnx", "mlx"], ["onnx", "mlx", "onnx"]):
        with local_engine(path, split, backends) as engine:
            assert greedy_tokens(engine, prompt, GENERATED) == expected


@pytest.mark.parametrize("backend", ["mlx", "onnx"])
def test_requests_at_once_get_the_tokens_that_each_gets_alone(model: Callable[[str], Path], backend: str) -> None:
    path = model("tied")
    prompts = [_prompt(seed, tokens) for seed, tokens in enumerate([3, 150, 64, 65, 1, 200])]
    expected = [reference.greedy(path, prompt, GENERATED) for prompt in prompts]
    with local_engine(path, (LayerRange(0, 3), LayerRange(3, 5)), [backend]) as engine:
        requests = [engine.submit(prompt, GenerateOptions(max_tokens=GENERATED)) for prompt in prompts]
        assert [collect(request) for request in requests] == expected


def test_a_cancelled_request_disturbs_nobody(model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, prompt = model("tied"), _prompt(4)
    expected = reference.greedy(path, prompt, GENERATED)
    with local_engine(path, (LayerRange(0, 3), LayerRange(3, 5)), ["onnx"]) as engine:
        Brake(monkeypatch).after(60)
        victim = engine.submit(_prompt(5), GenerateOptions(max_tokens=250))
        request = engine.submit(prompt, GenerateOptions(max_tokens=GENERATED))
        victim.events.get(timeout=PATIENCE_S)
        engine.cancel(victim)
        assert collect(request) == expected
        assert len(collect(victim)) < 249
