"""Keys and values that one stage exports and another imports: what is computed then, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp.backend.base import BackendOptions, SequenceFault, StageModel
from edgepp.errors import StageFault
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint
from tests.backend.kv_copying import (
    ALL,
    BACKENDS,
    CAPACITY,
    FORMS,
    LAYERS,
    begin,
    check_same,
    copy,
    export,
    load,
    states,
)
from tests.builders.properties import examples

pytestmark = pytest.mark.usefixtures("small_lanes")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A model stored in each dtype."""
    shape = replace(TINY, bits=4, group_size=32, head_size=32)
    folder = tmp_path_factory.mktemp("models")
    return {
        dtype: Checkpoint.open(make_checkpoint(folder / dtype, replace(shape, dtype=dtype)))
        for dtype in ("float32", "float16", "bfloat16")
    }


@pytest.fixture
def checkpoint(checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    return checkpoints["float32"]


@pytest.fixture(params=FORMS, ids=str, scope="module")
def stage(request: pytest.FixtureRequest, checkpoints: dict[str, Checkpoint]) -> StageModel:
    return load(checkpoints[request.param[2]], *request.param)


def test_the_layout_names_version_numbers_and_sizes(checkpoints: dict[str, Checkpoint]) -> None:
    assert {form: load(checkpoints[form[2]], *form).kv_layout for form in FORMS} == FORMS


@pytest.mark.parametrize("length", [1, 16, 40])
def test_an_imported_sequence_computes_what_the_original_computes(stage: StageModel, length: int) -> None:
    begin(stage, 1, length)
    copy(stage, 1, 2, [length])
    check_same(stage, [1], [2])


CUTS = st.sets(st.integers(1, 39), max_size=6)
"""Positions at which pieces of 40 positions end."""


def test_pieces_may_end_anywhere(stage: StageModel) -> None:
    begin(stage, 1, 40)

    @settings(max_examples=examples(12), suppress_health_check=list(HealthCheck))
    @given(first=CUTS, second=CUTS, back=st.integers(0, 9), cut=st.integers(0, 300), order=st.randoms())
    def check(first: set[int], second: set[int], back: int, cut: int, order: Random) -> None:
        left = {layer: [*sorted(cuts), 40] for layer, cuts in ((1, first), (2, second))}
        stage.open(2, CAPACITY)
        filled = {1: 0, 2: 0}
        while any(left.values()):
            layer = order.choice([layer for layer, stops in left.items() if stops])
            piece, start, stop = LayerRange(layer, layer + 1), max(0, filled[layer] - back), left[layer].pop(0)
            whole = memoryview(export(stage, 1, piece, start, stop))
            stage.import_kv(2, piece, start, stop, [whole[:cut], whole[cut:]])
            assert stage.length(2) == 0
            filled[layer] = stop
        stage.set_length(2, 40)
        assert export(stage, 2, LAYERS, 0, 40) == export(stage, 1, LAYERS, 0, 40)
        stage.fork(1, 3, 40, CAPACITY)
        row = states(1, 7)
        np.testing.assert_array_equal(stage.decode([3], row), stage.decode([2], row))

    check()


def test_one_position_after_each_step_gives_a_second_copy_that_goes_on(stage: StageModel) -> None:
    begin(stage, 1, 12)
    stage.open(2, CAPACITY)
    stage.import_kv(2, LAYERS, 0, 12, stage.export_kv(1, LAYERS, 0, 12))
    for n in range(30):
        stage.decode([1], states(1, n))
        stage.import_kv(2, LAYERS, 12 + n, 13 + n, stage.export_kv(1, LAYERS, 12 + n, 13 + n))
    stage.set_length(2, 42)
    check_same(stage, [1], [2])


def test_exports_do_not_change_what_a_sequence_computes(stage: StageModel) -> None:
    begin(stage, 1, 20)
    stage.fork(1, 2, 20, CAPACITY)
    for n in range(8):
        row = states(1, n)
        np.testing.assert_array_equal(stage.decode([1], row), stage.decode([2], row))
        kept = export(stage, 1, LAYERS, 0, 21 + n)
        assert kept == export(stage, 2, LAYERS, 0, 21 + n)
    stage.extend(1, states(4))
    assert kept == export(stage, 2, LAYERS, 0, 28)  # the bytes are not those that the stage works on


def test_sequences_of_a_batch_are_exported_and_imported(stage: StageModel) -> None:
    for sequence, length in ((1, 12), (2, 20), (3, 33)):
        begin(stage, sequence, length)
    for n in range(4):
        stage.decode([1, 2, 3], states(3, n))
    for sequence in (1, 2, 3):
        copy(stage, sequence, sequence + 10, [5, stage.length(sequence)])
    for _ in range(2):  # lanes that do not lie together are gathered in the second step
        stage.decode([11, 12, 13], states(3))
    for sequence in (11, 12, 13):
        stage.truncate(sequence, stage.length(sequence) - 2)
    check_same(stage, [1, 2, 3], [11, 12, 13])
    stage.decode([1, 2], states(2))
    copy(stage, 2, 1, [stage.length(2)])  # onto one of a batch
    check_same(stage, [2], [1])


def test_an_import_into_one_of_a_batch_leaves_the_others(stage: StageModel) -> None:
    for sequence in (1, 2, 3, 4):
        begin(stage, sequence, 12)
    stage.decode([1, 2, 3], states(3))
    stage.decode([1, 2, 3], states(3))
    stage.extend(4, np.concatenate([states(3)[1:2], states(3)[1:2], states(6)]))
    before = export(stage, 1, LAYERS, 0, 14)
    stage.import_kv(2, LAYERS, 14, 20, stage.export_kv(4, LAYERS, 14, 20))
    assert [stage.length(n) for n in (1, 2, 3)] == [14, 14, 14]
    stage.set_length(2, 20)
    stage.decode([1, 2, 3], states(3))
    assert [stage.length(n) for n in (1, 2, 3)] == [15, 21, 15]
    assert export(stage, 1, LAYERS, 0, 14) == before
    assert export(stage, 2, LAYERS, 14, 20) == export(stage, 4, LAYERS, 14, 20)


def test_imported_sequences_are_truncated_forked_and_resized(stage: StageModel) -> None:
    begin(stage, 1, 40)
    copy(stage, 1, 2, [17, 40])
    for sequence in (1, 2):
        stage.truncate(sequence, 30)
        stage.fork(sequence, sequence + 10, 25, 60)
        stage.resize(sequence, 33)
        stage.resize(sequence, 300)
    check_same(stage, [1], [2])
    check_same(stage, [11], [12])


def test_a_stage_of_more_layers_goes_on_with_pieces_of_two_others(checkpoint: Checkpoint) -> None:
    for backend, kv_bits in (("onnx", None), ("onnx", 8), ("mlx", None), ("mlx", 8), ("mlx", 4)):
        options = BackendOptions(exact=True, kv_bits=kv_bits)
        first, second, whole = (
            BACKENDS[backend]().load_stage(checkpoint, layers, options)
            for layers in (LayerRange(0, 3), LayerRange(3, 4), ALL)
        )
        for one in (first, second, whole):
            one.open(1, CAPACITY)
        second.extend(1, first.extend(1, states(40)))
        for start, stop in ((0, 23), (23, 40)):
            whole.import_kv(1, LayerRange(3, 4), start, stop, second.export_kv(1, LayerRange(3, 4), start, stop))
            for layers in (LayerRange(1, 3), LayerRange(0, 1)):
                whole.import_kv(1, layers, start, stop, first.export_kv(1, layers, start, stop))
        whole.set_length(1, 40)
        for n in range(5):
            expected = second.decode([1], first.decode([1], states(1, n)))
            np.testing.assert_array_equal(whole.decode([1], states(1, n)), expected)


@pytest.mark.parametrize(("source", "target"), [("onnx", "mlx"), ("mlx", "onnx")])
def test_float32_goes_from_one_backend_to_the_other(source: str, target: str, checkpoint: Checkpoint) -> None:
    old, new = load(checkpoint, source), load(checkpoint, target)
    assert old.kv_layout == new.kv_layout
    begin(old, 1, 40)
    copy(old, 1, 1, [40], to=new)
    assert export(new, 1, LAYERS, 0, 40) == export(old, 1, LAYERS, 0, 40)
    for hidden in (states(1, 2), states(9, 3)):
        expected = old.extend(1, hidden)
        assert np.abs(new.extend(1, hidden) - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_wrong_piece_is_refused_and_leaves_the_sequence_as_it_was(stage: StageModel) -> None:
    begin(stage, 1, 20)
    begin(stage, 2, 12)
    stage.fork(2, 3, 12, CAPACITY)
    before, piece = export(stage, 2, LAYERS, 0, 12), export(stage, 1, LAYERS, 12, 16)
    outside = LayerRange(0, 3), LayerRange(2, 4), LayerRange(3, 4)
    wrong = [
        *((layers, 12, 16, piece, "has no keys and values of layers") for layers in outside),
        (LAYERS, 12, 16, piece[:-1], "bytes are not 4 positions"),
        (LAYERS, 12, 16, piece + b"0", "bytes are not 4 positions"),
        (LAYERS, 12, 15, piece, "bytes are not 3 positions"),
        (LayerRange(1, 2), 12, 16, piece, "bytes are not 4 positions"),
        (LAYERS, 12, 16, b"", "bytes are not 4 positions"),
        (LAYERS, 13, 17, piece, "positions 12 to 12 in layers 1-2 were not imported"),
        (LAYERS, CAPACITY - 3, CAPACITY + 1, piece, "do not fit a sequence opened for"),
        (LAYERS, 12, 12, b"", "not a range"),
        (LAYERS, -4, 0, piece, "not a range"),
    ]
    for layers, start, stop, data, message in wrong:
        with pytest.raises(StageFault, match=message):
            stage.import_kv(2, layers, start, stop, [data])
    with pytest.raises(SequenceFault):
        stage.import_kv(7, LAYERS, 0, 4, [piece])
    assert (stage.length(2), export(stage, 2, LAYERS, 0, 12)) == (12, before)
    check_same(stage, [3], [2])


def test_what_cannot_be_exported_is_named(stage: StageModel) -> None:
    begin(stage, 1, 20)
    for sequence, stop in ((1, 21), (7, 3)):
        with pytest.raises(SequenceFault) as fault:
            stage.export_kv(sequence, LAYERS, 0, stop)
        assert fault.value.sequences == (sequence,)
    for layers, start, stop in ((ALL, 0, 3), (LayerRange(3, 4), 0, 3), (LAYERS, 3, 3), (LAYERS, -1, 3)):
        with pytest.raises(StageFault, match=r"has no keys|not a range"):
            stage.export_kv(1, layers, start, stop)


def test_the_length_grows_only_over_what_every_layer_has(stage: StageModel) -> None:
    begin(stage, 1, 30)
    begin(stage, 2, 12)
    stage.import_kv(2, LAYERS, 12, 20, stage.export_kv(1, LAYERS, 12, 20))
    stage.import_kv(2, LayerRange(1, 2), 20, 30, stage.export_kv(1, LayerRange(1, 2), 20, 30))
    for length in (21, -1):
        with pytest.raises(StageFault, match="have keys and values of 20 positions"):
            stage.set_length(2, length)
    with pytest.raises(SequenceFault):
        stage.set_length(7, 0)
    stage.set_length(2, 20)
    assert export(stage, 2, LAYERS, 12, 20) == export(stage, 1, LAYERS, 12, 20)
    stage.set_length(2, 15)
    assert stage.length(2) == 15
    stage.set_length(2, 0)
    assert stage.length(2) == 0


def test_computing_forgets_what_was_imported_beyond_the_length(stage: StageModel) -> None:
    begin(stage, 1, 30)
    changes = (
        lambda: stage.extend(2, states(1)),
        lambda: stage.decode([2, 1], states(2)),
        lambda: stage.truncate(2, 12),
        lambda: stage.resize(2, CAPACITY),
        lambda: begin(stage, 2, 12),
    )
    for change in changes:
        begin(stage, 2, 12)
        stage.import_kv(2, LAYERS, 12, 30, stage.export_kv(1, LAYERS, 12, 30))
        change()
        with pytest.raises(StageFault, match="not of 30"):
            stage.set_length(2, 30)


def test_caches_that_are_not_plain_are_neither_exported_nor_imported(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, TINY)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stage = load(Checkpoint.open(tmp_path), "mlx")
    begin(stage, 1, 12)
    assert stage.kv_layout == ""
    with pytest.raises(StageFault, match="do not hold keys and values of all positions"):
        stage.export_kv(1, LAYERS, 0, 3)
    with pytest.raises(StageFault, match="do not hold keys and values of all positions"):
        stage.import_kv(1, LAYERS, 0, 3, [b""])
    assert stage.length(1) == 12


def test_memory_that_runs_out_in_an_import_leaves_nothing_half_open(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = load(checkpoint, "mlx")
    begin(stage, 1, 20)
    piece = stage.export_kv(1, LAYERS, 0, 20)
    stage.open(2, CAPACITY)
    with monkeypatch.context() as patch:
        patch.setattr("edgepp.backend.mlx.kv_cache._beginning", _fail)
        with pytest.raises(StageFault, match="Unable to allocate"):
            stage.import_kv(2, LAYERS, 0, 20, piece)
    with pytest.raises(StageFault, match="no sequence 2"):
        stage.length(2)
    copy(stage, 1, 2, [20])
    check_same(stage, [1], [2])


def _fail(*_: object) -> None:
    raise RuntimeError("[malloc] Unable to allocate 17 bytes.")
