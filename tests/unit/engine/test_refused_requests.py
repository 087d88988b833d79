"""Ids, logits and options that no engine can work with are refused, and name the fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.request_isolation import token_ids
from edgepp.engine.sampling import Sampler
from edgepp.errors import StageFault, UsageError
from edgepp.model.random_checkpoint import TINY


@pytest.mark.parametrize("odd", [True, "3", 3.0, None, -1, TINY.vocabulary, 1 << 70, np.int64(-1), np.bool_(True)])
def test_ids_that_the_model_does_not_have_are_refused_at_submission(odd: Any) -> None:
    with pytest.raises(UsageError, match="token 1 of the prompt"):
        token_ids([5, odd, 6], TINY.vocabulary)


def test_numpy_ids_become_plain_ints() -> None:
    ids = token_ids(np.arange(5, dtype=np.int32), 5)  # type: ignore[arg-type]
    assert ids == [0, 1, 2, 3, 4]
    assert {type(token) for token in ids} == {int}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    "row", [[np.nan, 1, 2], [0, np.inf, 1], [-np.inf] * 3, [np.nan] * 3], ids=["nan", "inf", "nothing", "all nan"]
)
def test_logits_without_a_distribution_are_an_error(row: list[float], temperature: float) -> None:
    with pytest.raises(StageFault, match="logits are not numbers"):
        Sampler(SamplingOptions(temperature=temperature, logprobs=1))(np.array(row, np.float32), [1])


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False) | st.just(-np.inf), min_size=2, max_size=9),
    st.sampled_from([0.0, 1e-5, 1e-3, 1.0, 100.0]),
    st.sampled_from([0.01, 1.0, 100.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0, 1, 1 << 31]),
    st.sampled_from([0.0, 1.0]),
)
def test_any_other_logits_give_a_token_that_the_model_allows(
    row: list[float], temperature: float, penalty: float, top_p: float, top_k: int, min_p: float
) -> None:
    """Also for the largest floats and for options at the ends of their ranges; log-probabilities are numbers."""
    logits = np.array(row, np.float32)
    if logits.max() == -np.inf:
        logits[0] = 0
    options = SamplingOptions(temperature, penalty, top_p, min_p, top_k, seed=1, logprobs=20)
    sampled = Sampler(options)(logits, [0, 1])
    assert logits[sampled.token] > -np.inf
    assert all(np.isfinite(value) for _, value in sampled.top)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GenerateOptions(max_tokens=0), "at least 1"),
        (lambda: GenerateOptions(max_tokens="9"), "whole number"),  # type: ignore[arg-type]
        (lambda: GenerateOptions(max_tokens=True), "whole number"),
        (lambda: GenerateOptions(stop="ab"), "tuple of strings"),  # type: ignore[arg-type]
        (lambda: GenerateOptions(stop=("a",) * 17), "16 stop strings"),
        (lambda: GenerateOptions(stop=("a" * 1025,)), "1024 characters"),
        (lambda: SamplingOptions(temperature=float("nan")), "temperature"),
        (lambda: SamplingOptions(temperature="1"), "temperature"),  # type: ignore[arg-type]
        (lambda: SamplingOptions(top_p=True), "top_p"),
        (lambda: SamplingOptions(logit_bias=((1, float("nan")),)), "logit_bias"),
        (lambda: SamplingOptions(logit_bias=((1, float("inf")),)), "logit_bias"),
        (lambda: SamplingOptions(logit_bias=((True, 1.0),)), "logit_bias"),
        (lambda: SamplingOptions(logit_bias={1: 2.0}), "logit_bias"),  # type: ignore[arg-type]
    ],
)
def test_invalid_options_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()
