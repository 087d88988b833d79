from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import PlanError, UsageError
from edgepp.layer_range import LayerRange, check_tiling, split_evenly


@given(st.integers(1, 200), st.data())
def test_an_even_split_tiles_the_model_exactly_once(num_layers: int, data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, num_layers))
    ranges = split_evenly(num_layers, stages)
    check_tiling(ranges, num_layers)
    assert [layer for layers in ranges for layer in range(layers.start, layers.stop)] == list(range(num_layers))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@given(st.integers(1, 200), st.floats(0, 50), st.data())
def test_a_head_shortens_the_last_range_as_if_its_layers_followed(
    num_layers: int, head: float, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, num_layers))
    ranges = split_evenly(num_layers, stages, head)
    check_tiling(ranges, num_layers)
    assert len(ranges) == stages
    *others, last = map(len, ranges)
    assert all(abs(one - (num_layers + head) / stages) < 1 for one in others) or last == 1
    assert not others or last <= min(others) + 1


def test_a_head_of_four_layers_behind_thirty() -> None:
    assert split_evenly(30, 2, 4.0) == (LayerRange(0, 17), LayerRange(17, 30))


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), max_size=5), st.integers(1, 12))
def test_tiling_is_accepted_exactly_when_each_layer_is_held_once(spans: list[tuple[int, int]], num_layers: int) -> None:
    ranges = [LayerRange(start, start + length) for start, length in spans]
    held = sorted(layer for layers in ranges for layer in range(layers.start, layers.stop))
    if held == list(range(num_layers)):
        check_tiling(ranges, num_layers)
    else:
        with pytest.raises(PlanError):
            check_tiling(ranges, num_layers)


@given(st.integers(0, 999), st.integers(1, 999))
def test_the_inclusive_form_round_trips(start: int, length: int) -> None:
    layers = LayerRange(start, start + length)
    assert LayerRange.parse(str(layers)) == layers
    assert LayerRange.parse(f"{start}-{start + length - 1}") == layers


@pytest.mark.parametrize("text", ["", "a-b", "3-", "-3", "1-2-3", "5-4", "0x1-2", "1.5-2", "999999-1000000"])
def test_a_bad_range_is_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="layer range"):
        LayerRange.parse(text)


@pytest.mark.parametrize(
    ("ranges", "sentence"),
    [
        (["0-3", "6-9"], "layers 4-5 are missing"),
        (["0-5", "4-9"], "layers 4-5 are held twice"),
        (["0-3"], "layers 4-9 are missing"),
        (["0-11"], "the model has only layers 0-9"),
        ([], "layers 0-9 are missing"),
    ],
)
def test_a_bad_plan_says_what_is_wrong(ranges: list[str], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        check_tiling([LayerRange.parse(text) for text in ranges], 10)


def test_more_stages_than_layers_is_refused() -> None:
    with pytest.raises(PlanError, match="cannot be split"):
        split_evenly(4, 5)
