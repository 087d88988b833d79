"""Ranks of a tensor-parallel stage against mlx-lm, for shares of every kind, in both backends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepp import backend
from edgepp.backend.base import BackendOptions, SequenceFault
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import LLAMA3_ROPE, TINY
from edgepp.model.weights.checkpoint import Array, Checkpoint
from tests import reference
from tests.builders.checkpoints import Checkpoints
from tests.builders.ranks import Ranks

EXACT = BackendOptions(exact=True)
WIDE = replace(TINY, heads=8, kv_heads=8, hidden=128, ffn=256)
QUANTISED = replace(WIDE, bits=4, group_size=32, heads=16, dtype="float16")
SHAPES = {
    "f32": WIDE,
    "bf16-untied": replace(WIDE, dtype="bfloat16", tied=False),
    "q4": QUANTISED,
    "q3-g64": replace(QUANTISED, bits=3, group_size=64, heads=32),
    "q8": replace(QUANTISED, bits=8),
    "mistral": replace(QUANTISED, family="mistral"),
    "qwen2": replace(QUANTISED, family="qwen2", hidden=256),
    "qwen3": replace(QUANTISED, family="qwen3", head_size=32),
}
CASES = [*((shape, weights) for shape in SHAPES for weights in ((1, 1), (5, 3))), ("f32", (2, 1, 1)), ("q4", (1,) * 4)]
BACKENDS = ["onnx", "mlx"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("ranks"))


@contextmanager
def ranks_of(path: Path, weights: tuple[int, ...], name: str, options: BackendOptions = EXACT) -> Iterator[Ranks]:
    checkpoint = Checkpoint.open(path)
    ranks = Ranks(checkpoint, LayerRange(0, checkpoint.num_layers), weights, name, options)
    try:
        yield ranks
    finally:
        ranks.close()


def embedded(path: Path, ids: list[int]) -> Array:
    checkpoint = Checkpoint.open(path)
    return backend.choose("onnx", checkpoint).load_embedding_and_head(checkpoint, EXACT).embed(ids)


def greedy(path: Path, ranks: Ranks, prompt: list[int], n: int) -> list[int]:
    checkpoint = Checkpoint.open(path)
    ends = backend.choose("onnx", checkpoint).load_embedding_and_head(checkpoint, EXACT)
    ranks.call("open", 0, len(prompt) + n)
    tokens: list[int] = []
    step = prompt
    for _ in range(n):
        step = [int(ends.logits(ranks.call("extend", 0, ends.embed(step))[-1:])[0].argmax())]
        tokens += step
    return tokens


def prompt_of(path: Path, n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(3).integers(0, Checkpoint.open(path).vocab_size, n)]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("shape", "weights"), CASES, ids=str)
def test_greedy_tokens_of_any_shares_are_mlx_lms(
    shape: str, weights: tuple[int, ...], name: str, checkpoints: Checkpoints
) -> None:
    path = checkpoints(SHAPES[shape])
    prompt = prompt_of(path, 20)
    with ranks_of(path, weights, name) as ranks:
        assert greedy(path, ranks, prompt, 12) == reference.greedy(path, prompt, 12)


@pytest.mark.parametrize("name", BACKENDS)
def test_scaled_rotary_embeddings_and_three_heads(name: str, checkpoints: Checkpoints) -> None:
    shape = replace(TINY, heads=6, kv_heads=3, hidden=96, bits=4, group_size=32, dtype="float16", ffn=96)
    path = checkpoints(shape, rope_scaling=LLAMA3_ROPE, rope_theta=500000.0)
    prompt = prompt_of(path, 30)
    with ranks_of(path, (2, 1), name) as ranks:
        assert greedy(path, ranks, prompt, 12) == reference.greedy(path, prompt, 12)


@pytest.mark.parametrize("name", BACKENDS)
def test_default_accuracy_is_that_of_one_process(name: str, checkpoints: Checkpoints) -> None:
    path = checkpoints(QUANTISED)
    checkpoint, ids = Checkpoint.open(path), prompt_of(path, 48)
    whole = backend.choose(name, checkpoint).load_stage(checkpoint, LayerRange(0, 4), BackendOptions())
    hidden = embedded(path, ids)
    whole.open(0, 64)
    expected = whole.extend(0, hidden)
    with ranks_of(path, (5, 3), name, BackendOptions()) as ranks:
        ranks.call("open", 0, 64)
        found = ranks.call("extend", 0, hidden)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.05 * expected.std()


@pytest.mark.parametrize("name", BACKENDS)
def test_batches_forks_and_truncation(name: str, checkpoints: Checkpoints, small_lanes: None) -> None:
    path = checkpoints(QUANTISED)
    checkpoint, ids = Checkpoint.open(path), prompt_of(path, 60)
    hidden = embedded(path, ids)
    whole = backend.choose(name, checkpoint).load_stage(checkpoint, LayerRange(0, 4), EXACT)
    with ranks_of(path, (5, 3), name) as ranks:

        def both(method: str, *arguments: object) -> tuple[Array, Array]:
            return getattr(whole, method)(*arguments), ranks.call(method, *arguments)

        for sequence, length in ((1, 9), (2, 17), (3, 30)):
            both("open", sequence, 60)
            both("extend", sequence, hidden[:length])
        both("fork", 3, 4, 20, 60)
        both("truncate", 2, 5)
        both("resize", 2, 40)
        for step in range(4):
            expected, found = both("decode", [2, 4, 1, 3], hidden[step : step + 4])
            np.testing.assert_allclose(found, expected, atol=1e-4)
        both("free", 1)
        expected, found = both("extend", 2, hidden[40:50])
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert ranks.call("length", 2) == whole.length(2) == 19
        with pytest.raises(SequenceFault):
            ranks.call("extend", 1, hidden[:1])
        five, three = ranks.kv_bytes()
        assert five * 3 == three * 5


def test_keys_and_values_in_eight_bits(checkpoints: Checkpoints) -> None:
    path = checkpoints(SHAPES["qwen3"])
    checkpoint, options = Checkpoint.open(path), BackendOptions(exact=True, kv_bits=8)
    hidden = embedded(path, prompt_of(path, 20))
    for name in BACKENDS:
        whole = backend.choose(name, checkpoint).load_stage(checkpoint, LayerRange(0, 4), options)
        whole.open(0, 64)
        with ranks_of(path, (1, 1), name, options) as ranks:
            ranks.call("open", 0, 64)
            np.testing.assert_allclose(ranks.call("extend", 0, hidden), whole.extend(0, hidden), atol=1e-3)
