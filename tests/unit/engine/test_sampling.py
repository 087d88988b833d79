from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlx_lm import sample_utils

from edgepp.engine.request import SamplingOptions
from edgepp.engine.sampling import Sampled, Sampler, _winner, filtered, penalise_repetition, uniform_numbers
from edgepp.errors import UsageError
from tests.builders.properties import examples


def _logits(seed: int, size: int = 500) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(size) * 3).astype(np.float32)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, "must lie between"),
    ({"temperature": float("nan")}, "must lie between"),
    ({"top_p": 1.5}, "must lie between"),
    ({"min_p": -0.1}, "must lie between"),
    ({"top_k": -1}, "must lie between"),
    ({"top_k": 2.5}, "whole number"),
    ({"seed": 1.5}, "whole number"),
    ({"seed": 1 << 64}, "must lie between"),
    ({"frequency_penalty": 2.1}, "must lie between"),
    ({"presence_penalty": -2.1}, "must lie between"),
    ({"logprobs": 21}, "must lie between"),
    ({"logprobs": True}, "whole number"),
    ({"logit_bias": ((1, 101),)}, "must lie between"),
    ({"logit_bias": ((1, float("nan")),)}, "must lie between"),
    ({"logit_bias": ((-1, 1),)}, "by their ids"),
    ({"logit_bias": (("the", 1),)}, "by their ids"),
    ({"logit_bias": ((1, 1), (1, 2))}, "twice"),
    ({"logit_bias": tuple((token, 1) for token in range(1025))}, "1024 tokens"),
]


def _kept(logprobs: Any) -> set[int]:
    return set(np.flatnonzero(np.asarray(logprobs).reshape(-1) > -np.inf).tolist())


def _mlx_logprobs(logits: npt.NDArray[np.float32]) -> mx.array:
    row = mx.array(logits)[None]
    return row - mx.logsumexp(row, keepdims=True)


@settings(max_examples=examples(40))
@given(st.integers(0, 10_000), st.floats(0.05, 0.99))
def test_top_p_keeps_what_mlx_lm_keeps(seed: int, top_p: float) -> None:
    logits = _logits(seed)
    ours = _kept(filtered(logits, SamplingOptions(top_p=top_p)))
    theirs = _kept(sample_utils.apply_top_p(_mlx_logprobs(logits), top_p))
    probabilities = np.exp(np.asarray(_mlx_logprobs(logits))[0])
    # The two sum in opposite directions: a token at the very edge may fall on either side.
    assert sum(probabilities[i] for i in ours ^ theirs) < 2 * probabilities[list(ours)].min()
    assert len(ours ^ theirs) <= 1


@settings(max_examples=examples(40))
@given(st.integers(0, 10_000), st.floats(0.001, 0.9))
def test_min_p_keeps_what_mlx_lm_keeps(seed: int, min_p: float) -> None:
    logits = _logits(seed)
    ours = _kept(filtered(logits, SamplingOptions(min_p=min_p)))
    assert ours == _kept(sample_utils.apply_min_p(_mlx_logprobs(logits), min_p))


@settings(max_examples=examples(40))
@given(st.integers(0, 10_000), st.integers(1, 499))
@example(seed=72, top_k=137)  # two tokens at the edge are equal
def test_top_k_keeps_what_mlx_lm_keeps(seed: int, top_k: int) -> None:
    logits = _logits(seed)
    ours = _kept(filtered(logits, SamplingOptions(top_k=top_k)))
    theirs = _kept(sample_utils.apply_top_k(_mlx_logprobs(logits), top_k))
    logprobs = np.asarray(_mlx_logprobs(logits))[0]
    assert theirs <= ours
    # Of equal tokens at the edge mlx-lm keeps some; edgepp keeps all.
    assert all(logprobs[token] == logprobs[list(theirs)].min() for token in ours - theirs)


@settings(max_examples=examples(60))
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 7, 500, 5000]),
    st.floats(0.01, 8.0),
    st.sampled_from([0.0, 0.05, 0.5, 0.9, 0.999, 0.9999999]),
    st.sampled_from([0, 1, 40, 400, 4999]),
)
def test_filters_keep_bit_for_bit_what_they_keep_with_all_tokens_sorted(
    seed: int, vocabulary: int, spread: float, top_p: float, top_k: int
) -> None:
    logits = np.round(_logits(seed, vocabulary) * np.float32(spread), 2)  # rounded, so that some are equal
    logprobs = filtered(logits, SamplingOptions())
    ordered = np.sort(logprobs)[::-1]
    last = min(int(np.exp(ordered).cumsum().searchsorted(top_p)), vocabulary - 1)
    expected = np.where(logprobs >= ordered[last], logprobs, np.float32(-np.inf))
    if 0 < top_k < vocabulary:
        expected = np.where(expected >= np.sort(expected)[-top_k], expected, np.float32(-np.inf))
    np.testing.assert_array_equal(filtered(logits, SamplingOptions(top_p=top_p, top_k=top_k)), expected)


@settings(max_examples=examples(40))
@given(st.integers(0, 10_000), st.floats(1.01, 3.0), st.lists(st.integers(0, 499), min_size=1, max_size=20))
def test_repetition_is_penalised_as_in_mlx_lm(seed: int, penalty: float, recent: list[int]) -> None:
    logits = _logits(seed)
    (processor,) = sample_utils.make_logits_processors(repetition_penalty=penalty)
    theirs = np.asarray(processor(mx.array(recent), mx.array(logits)[None]))[0]
    np.testing.assert_allclose(penalise_repetition(logits, recent, penalty), theirs, rtol=1e-5)


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = _logits(3)
    assert Sampler(SamplingOptions())(logits, []).token == int(logits.argmax())


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=1))
    drawn = np.bincount([sampler(logits, []).token for _ in range(6000)], minlength=4) / 6000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.15, 0.05], atol=0.02)  # three deviations of the first share


def test_many_draws_from_a_wide_distribution_fit_it() -> None:
    """Pearson's test over 300 tokens, also the rare ones: its statistic has mean 299 and deviation 24."""
    logits = _logits(11, 300)
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    sampler, draws = Sampler(SamplingOptions(temperature=1.0, seed=2)), 10_000
    drawn = np.bincount([sampler(logits, []).token for _ in range(draws)], minlength=300)
    statistic = ((drawn - draws * probabilities) ** 2 / (draws * probabilities)).sum()
    assert 200 < statistic < 400


@settings(max_examples=examples(40))
@given(st.integers(0, (1 << 64) - 1), st.integers(1, 400), st.floats(0.1, 8.0))
def test_the_winner_is_the_first_of_a_race_over_all_tokens(key: int, vocabulary: int, spread: float) -> None:
    weights = np.exp((_logits(key % 1000, vocabulary) * spread).astype(np.float64))
    uniform = uniform_numbers(key, np.arange(vocabulary))
    assert uniform.min() > 0.0
    assert uniform.max() < 1.0
    assert _winner(weights, uniform) == int((weights / -np.log(uniform)).argmax())


def test_a_draw_depends_on_no_token_that_the_filters_rule_out() -> None:
    """A token at the edge of the filters is kept or not by a rounding error, and must not change the others' draws."""
    logits = np.log(np.array([0.4, 0.3, 0.2, 1e-9, 0.1], np.float32))
    without = np.where(np.arange(5) == 3, -np.inf, logits).astype(np.float32)
    samplers = [Sampler(SamplingOptions(temperature=1.0, seed=5)) for _ in range(2)]
    pairs = [(samplers[0](logits, []).token, samplers[1](without, []).token) for _ in range(500)]
    assert all(one == other for one, other in pairs)


def test_temperature_sharpens_after_the_filters() -> None:
    logits = np.log(np.array([0.6, 0.4], np.float32))
    sampler = Sampler(SamplingOptions(temperature=0.5, seed=1))
    drawn = np.mean([sampler(logits, []).token == 0 for _ in range(6000)])
    assert drawn == pytest.approx(0.36 / (0.36 + 0.16), abs=0.018)  # three deviations


def test_a_seed_reproduces_whatever_else_runs() -> None:
    options = SamplingOptions(temperature=1.0, seed=7)
    alone, beside, other = Sampler(options), Sampler(options), Sampler(SamplingOptions(temperature=1.0, seed=8))
    first = [alone(_logits(i), []) for i in range(50)]
    second = []
    for i in range(50):
        other(_logits(i), [])
        second.append(beside(_logits(i), []))
    assert first == second


@pytest.mark.parametrize(("bad", "said"), BAD, ids=str)
def test_bad_options_are_one_sentence(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SamplingOptions(**bad)


@pytest.mark.parametrize("seed", [-(1 << 63), -1, 0, (1 << 64) - 1])
def test_every_seed_of_64_bits_is_accepted(seed: int) -> None:
    options = SamplingOptions(temperature=1.0, seed=seed)
    assert Sampler(options)(_logits(1), []) == Sampler(options)(_logits(1), [])


def test_a_temperature_near_zero_is_greedy() -> None:
    logits = _logits(4)
    assert Sampler(SamplingOptions(temperature=5e-324))(logits, []).token == int(logits.argmax())


@settings(max_examples=examples(40))
@given(
    st.integers(0, 10_000),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.dictionaries(st.integers(0, 19), st.floats(-100, 100), max_size=8),
)
def test_penalties_and_bias_are_by_the_formula(seed: int, often: float, ever: float, bias: dict[int, float]) -> None:
    options = SamplingOptions(
        frequency_penalty=often, presence_penalty=ever, logit_bias=tuple(bias.items()), logprobs=20
    )
    sampler, counts = Sampler(options), np.zeros(20)
    for step in range(12):
        logits = _logits(seed + step, 20)
        expected = logits.astype(np.float64) - counts * often - (counts > 0) * ever
        for token, added in bias.items():
            expected[token] += added
        expected -= np.log(np.exp(expected - expected.max()).sum()) + expected.max()
        sampled = sampler(logits, [])
        assert expected[sampled.token] >= expected.max() - 1e-3
        np.testing.assert_allclose([logprob for _, logprob in sorted(sampled.top)], expected, atol=1e-3)
        counts[sampled.token] += 1


def test_the_given_logits_are_not_changed() -> None:
    logits = _logits(5)
    logits.flags.writeable = False
    options = SamplingOptions(1.0, 1.2, 0.9, 0.01, 40, 7, 1.0, 1.0, ((3, 50.0),), 5)
    sampler = Sampler(options)
    for _ in range(5):
        sampler(logits, [1, 2, 3])


def test_a_bias_forbids_and_forces() -> None:
    logits = _logits(6)
    best = int(logits.argmax())
    assert Sampler(SamplingOptions(logit_bias=((best, -100),)))(logits, []).token != best
    drawn = Sampler(SamplingOptions(temperature=1.0, logit_bias=((17, 100),)))
    assert {drawn(logits, []).token for _ in range(20)} == {17}


def test_a_bias_for_an_unknown_token_is_refused() -> None:
    with pytest.raises(UsageError, match="names token 500, and the model has tokens 0 to 499"):
        Sampler(SamplingOptions(logit_bias=((500, 1.0),)))(_logits(7), [])


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_logprobs_are_those_of_the_model(count: int, temperature: float) -> None:
    logits = _logits(8)
    expected = np.asarray(_mlx_logprobs(logits))[0]
    sampled = Sampler(SamplingOptions(temperature, top_k=3, seed=1, logprobs=count))(logits, [])
    assert sampled.logprob == pytest.approx(expected[sampled.token], abs=1e-4)
    assert [token for token, _ in sampled.top] == np.argsort(-expected)[:count].tolist()
    np.testing.assert_allclose([logprob for _, logprob in sampled.top], np.sort(expected)[::-1][:count], atol=1e-4)


def test_logprobs_change_no_draw_and_cost_nothing_unless_requested() -> None:
    plain, asked = Sampler(SamplingOptions(1.0, seed=3)), Sampler(SamplingOptions(1.0, seed=3, logprobs=4))
    for step in range(20):
        sampled = plain(_logits(step), [])
        assert sampled == Sampled(sampled.token)
        assert asked(_logits(step), []).token == sampled.token


def test_more_alternatives_than_tokens_are_all_of_them() -> None:
    assert len(Sampler(SamplingOptions(logprobs=20))(_logits(9, 7), []).top) == 7
