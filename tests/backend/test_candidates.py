"""Candidates of parts of the vocabulary, merged, against the whole rows of logits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepp.backend.candidates import CandidateRow, candidates_of, merged, width_of
from edgepp.engine.request import SamplingOptions
from edgepp.engine.sampling import Sampler, row_with_logprobs, with_logprobs
from edgepp.errors import StageFault
from edgepp.model.weights.checkpoint import Array

LOGITS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=40),
    elements=st.sampled_from([-np.inf, -30.0, -1.5, 0.0, 0.25, 2.0, 2.0, 30.0, 3e38]),
)


def of_parts(logits: Array, cuts: list[int], count: int) -> Array:
    edges = [0, *sorted({1 + cut % (logits.shape[1] - 1) for cut in cuts}), logits.shape[1]]
    parts = [candidates_of(logits[:, start:stop], start, count) for start, stop in itertools.pairwise(edges)]
    return merged(parts, count)


@given(LOGITS, st.lists(st.integers(0, 99), min_size=1, max_size=4), st.integers(1, 20))
def test_the_likeliest_of_parts_are_those_of_the_whole(logits: Array, cuts: list[int], count: int) -> None:
    rows = of_parts(logits, cuts, count)
    assert rows.shape == (len(logits), width_of(count))
    for row, whole in zip(rows, logits, strict=True):
        found = CandidateRow(row, len(whole))
        assert len(found) == len(whole)
        assert found.max() == whole.max()
        if not np.isfinite(whole.max()):
            continue
        assert found.argmax() == whole.argmax()
        order = sorted(range(len(whole)), key=lambda token: (-whole[token], token))
        likely = [token for token in order if whole[token] > -np.inf][:count]
        assert [token for token, _ in found.top_logprobs(count)] == likely
        expected = with_logprobs(whole, likely[0], 0).logprob
        assert found.top_logprobs(1)[0][1] == pytest.approx(expected, abs=1e-4)


@given(LOGITS, st.integers(1, 20))
def test_candidates_of_the_whole_vocabulary_give_the_log_probabilities_of_all_logits(logits: Array, count: int) -> None:
    for row, whole in zip(candidates_of(logits, 0, count), logits, strict=True):
        if np.isfinite(whole.max()):
            token = int(whole.argmax())
            assert row_with_logprobs(CandidateRow(row, len(whole)), count) == with_logprobs(whole, token, count)


def test_a_tie_goes_to_the_lowest_token_id() -> None:
    logits = np.zeros((1, 100), np.float32)
    logits[0, [7, 40, 80]] = 3
    row = CandidateRow(of_parts(logits, [19, 49], 2)[0], 100)
    assert [token for token, _ in row.top_logprobs(2)] == [7, 40]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("at", [3, 77])
def test_a_row_that_is_not_finite_is_refused_when_it_is_drawn(bad: float, count: int, at: int) -> None:
    logits = np.zeros((2, 100), np.float32)
    logits[0, at] = bad
    wrong, right = (CandidateRow(row, 100) for row in of_parts(logits, [49], count))
    sampler = Sampler(SamplingOptions(logprobs=None if count == 1 else count))
    with pytest.raises(StageFault, match="not numbers or infinite"):
        sampler(wrong, [])
    assert sampler(right, []).token == 0


@pytest.mark.parametrize("token", [100, -1])
def test_a_token_id_outside_the_vocabulary_is_refused(token: int) -> None:
    row = candidates_of(np.zeros((1, 100), np.float32), 0, 1)[0]
    row.view(np.int32)[2] = token
    with pytest.raises(StageFault, match="not below 100"):
        CandidateRow(row, 100)


@pytest.mark.parametrize(
    ("sampling", "count"),
    [
        ({}, 1),
        ({"logprobs": 0}, 1),
        ({"logprobs": 7}, 7),
        ({"temperature": 0.5}, 0),
        ({"repetition_penalty": 1.1}, 0),
        ({"logit_bias": ((1, 2.0),)}, 0),
        ({"presence_penalty": 0.1}, 0),
    ],
    ids=str,
)
def test_how_many_candidates_are_enough(sampling: dict[str, object], count: int) -> None:
    assert Sampler(SamplingOptions(**sampling)).candidates == count  # type: ignore[arg-type]
