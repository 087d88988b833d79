from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm import sample_utils

from edgepp.engine.request import SamplingOptions
from edgepp.engine.sampling import Sampler, filtered, penalise_repetition
from edgepp.errors import UsageError


def _logits(seed: int, size: int = 500) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(size) * 3).astype(np.float32)


def _kept(logprobs: Any) -> set[int]:
    return set(np.flatnonzero(np.asarray(logprobs).reshape(-1) > -np.inf).tolist())


def _mlx_logprobs(logits: npt.NDArray[np.float32]) -> mx.array:
    row = mx.array(logits)[None]
    return row - mx.logsumexp(row, keepdims=True)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.05, 0.99))
def test_top_p_keeps_what_mlx_lm_keeps(seed: int, top_p: float) -> None:
    logits = _logits(seed)
    ours = _kept(filtered(logits, SamplingOptions(top_p=top_p)))
    theirs = _kept(sample_utils.apply_top_p(_mlx_logprobs(logits), top_p))
    probabilities = np.exp(np.asarray(_mlx_logprobs(logits))[0])
    # The two sum in opposite directions: a token at the very edge may fall on either side.
    assert sum(probabilities[i] for i in ours ^ theirs) < 2 * probabilities[list(ours)].min()
    assert len(ours ^ theirs) <= 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.001, 0.9))
def test_min_p_keeps_what_mlx_lm_keeps(seed: int, min_p: float) -> None:
    logits = _logits(seed)
    ours = _kept(filtered(logits, SamplingOptions(min_p=min_p)))
    assert ours == _kept(sample_utils.apply_min_p(_mlx_logprobs(logits), min_p))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 499))
def test_top_k_keeps_what_mlx_lm_keeps(seed: int, top_k: int) -> None:
    logits = _logits(seed)
    ours = _kept(filtered(logits, SamplingOptions(top_k=top_k)))
    assert ours == _kept(sample_utils.apply_top_k(_mlx_logprobs(logits), top_k))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(1.01, 3.0), st.lists(st.integers(0, 499), min_size=1, max_size=20))
def test_repetition_is_penalised_as_in_mlx_lm(seed: int, penalty: float, recent: list[int]) -> None:
    logits = _logits(seed)
    (processor,) = sample_utils.make_logits_processors(repetition_penalty=penalty)
    theirs = np.asarray(processor(mx.array(recent), mx.array(logits)[None]))[0]
    np.testing.assert_allclose(penalise_repetition(logits, recent, penalty), theirs, rtol=1e-5)


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = _logits(3)
    assert Sampler(SamplingOptions())(logits, []) == int(logits.argmax())


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=1))
    drawn = np.bincount([sampler(logits, []) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_temperature_sharpens_after_the_filters() -> None:
    logits = np.log(np.array([0.6, 0.4], np.float32))
    sampler = Sampler(SamplingOptions(temperature=0.5, seed=1))
    drawn = np.mean([sampler(logits, []) == 0 for _ in range(20_000)])
    assert drawn == pytest.approx(0.36 / (0.36 + 0.16), abs=0.015)


def test_a_seed_repeats_whatever_runs_beside_it() -> None:
    options = SamplingOptions(temperature=1.0, seed=7)
    alone, beside, other = Sampler(options), Sampler(options), Sampler(SamplingOptions(temperature=1.0, seed=8))
    first = [alone(_logits(i), []) for i in range(50)]
    second = []
    for i in range(50):
        other(_logits(i), [])
        second.append(beside(_logits(i), []))
    assert first == second


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -1}])
def test_bad_options_are_one_sentence(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must lie between"):
        SamplingOptions(**bad)
