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

STAGE = "stage 1"


def of_parts(logits: Array, cuts: list[int], count: int) -> Array:
    edges = [0, *sorted({1 + cut % (logits.shape[1] - 1) for cut in cuts}), logits.shape[1]]
    parts = [candidates_of(logits[:, start:stop], start, count) for start, stop in itertools.pairwise(edges)]
    return merged(parts, count)


@given(LOGITS, st.lists(st.integers(0, 99), min_size=1, max_size=4), st.integers(1, 20))
def test_the_likeliest_of_parts_are_those_of_the_whole(logits: Array, cuts: list[int], count: int) -> None:
    rows = of_parts(logits, cuts, count)
    assert rows.shape == (len(logits), width_of(count))
    for row, whole in zip(rows, logits, strict=True):
        if not np.isfinite(whole.max()):
            with pytest.raises(StageFault, match="not numbers or infinite"):
                CandidateRow(row, len(whole), STAGE)
            continue
        found = CandidateRow(row, len(whole), STAGE)
        assert len(found) == len(whole)
        assert found.max() == whole.max()
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
            assert row_with_logprobs(CandidateRow(row, len(whole), STAGE), count) == with_logprobs(whole, token, count)


def test_a_tie_goes_to_the_lowest_token_id() -> None:
    logits = np.zeros((1, 100), np.float32)
    logits[0, [7, 40, 80]] = 3
    row = CandidateRow(of_parts(logits, [19, 49], 2)[0], 100, STAGE)
    assert [token for token, _ in row.top_logprobs(2)] == [7, 40]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("at", [3, 77])
def test_a_row_that_is_not_finite_is_refused_by_the_name_of_its_stage(bad: float, count: int, at: int) -> None:
    logits = np.zeros((2, 100), np.float32)
    logits[0, at] = bad
    wrong, right = of_parts(logits, [49], count)
    with pytest.raises(StageFault, match=f"^{STAGE} returned logits that are not numbers or infinite$"):
        CandidateRow(wrong, 100, STAGE)
    sampler = Sampler(SamplingOptions(logprobs=None if count == 1 else count))
    assert sampler(CandidateRow(right, 100, STAGE), []).token == 0


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"id 0": 100}, "a token id that is not below 100"),
        ({"id 2": -1}, "a token id that is not below 100"),
        ({"log-sum-exp": np.nan}, "candidates that contradict one another"),
        ({"log-sum-exp": np.inf}, "candidates that contradict one another"),
        ({"log-sum-exp": -np.inf}, "candidates that contradict one another"),
        ({"log-sum-exp": 2.9}, "candidates that contradict one another"),
        ({"logit 0": -np.inf, "logit 1": -np.inf, "logit 2": -np.inf}, "logits that are not numbers or infinite"),
        ({"logit 1": np.nan}, "candidates that contradict one another"),
        ({"logit 2": np.nan}, "candidates that contradict one another"),
        ({"logit 2": 2.5}, "candidates that contradict one another"),
        ({"id 2": 7}, "candidates that contradict one another"),
    ],
    ids=str,
)
def test_a_row_that_no_stage_can_have_computed_is_refused(changes: dict[str, float], fault: str) -> None:
    logits = np.zeros((1, 100), np.float32)
    logits[0, [7, 40]] = 3, 2
    row = candidates_of(logits, 0, 3)[0]
    CandidateRow(row, 100, STAGE)
    for place, value in changes.items():
        match place.split():
            case "id", number:
                row.view(np.int32)[4 + int(number)] = value
            case "logit", number:
                row[1 + int(number)] = value
            case _:
                row[0] = value
    with pytest.raises(StageFault, match=f"^{STAGE} returned {fault}$"):
        CandidateRow(row, 100, STAGE)


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
