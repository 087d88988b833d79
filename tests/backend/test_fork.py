"""Sequences that begin with positions of another sequence, and sequences whose capacity changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from edgepp.backend.base import BackendOptions, SequenceFault, StageModel
from edgepp.backend.loader import Backend
from edgepp.backend.mlx.backend import MlxBackend
from edgepp.backend.mlx.stage import MlxStage
from edgepp.backend.onnx import kv_arena as onnx_arena
from edgepp.backend.onnx.backend import OnnxBackend
from edgepp.errors import StageFault
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Array, Checkpoint

BACKENDS: dict[str, type[Backend]] = {"onnx": OnnxBackend, "mlx": MlxBackend}
EXACT = BackendOptions(exact=True)
LAYERS = LayerRange(1, 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    shape = replace(TINY, bits=4, group_size=32, kv_heads=1, head_size=32, dtype="float16")
    return Checkpoint.open(make_checkpoint(tmp_path_factory.mktemp("model"), shape))


@pytest.fixture(params=[("onnx", None), ("onnx", 8), ("mlx", None), ("mlx", 4)], ids=str)
def stage(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> StageModel:
    backend, kv_bits = request.param
    return BACKENDS[backend]().load_stage(checkpoint, LAYERS, BackendOptions(exact=True, kv_bits=kv_bits))


def states(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, TINY.hidden)).astype(np.float32)


PREFIX, SUFFIXES = states(20), [states(9, seed) for seed in (1, 2)]


def alone(stage: StageModel, *parts: Array) -> Array:
    """Results of the last part when a new sequence computes the parts in order."""
    stage.open(99, 60)
    result = [stage.extend(99, part) for part in parts][-1]
    stage.free(99)
    return result


def check_next(stage: StageModel, sequence: int, hidden: Array, *before: Array) -> None:
    """Check that the next results of a sequence are those of a new sequence after ``before``."""
    expected = alone(stage, *before, hidden)
    np.testing.assert_allclose(stage.extend(sequence, hidden), expected, rtol=1e-4, atol=1e-5)


def begin(stage: StageModel) -> None:
    """Open sequence 1 with ``PREFIX``."""
    stage.open(1, 40)
    stage.extend(1, PREFIX)


@pytest.mark.parametrize("length", [1, 7, 20])
def test_source_and_fork_are_independent(stage: StageModel, length: int) -> None:
    assert stage.rewinds
    begin(stage)
    stage.fork(1, 2, length, 30)
    assert (stage.length(1), stage.length(2)) == (20, length)
    check_next(stage, 1, SUFFIXES[0], PREFIX)
    check_next(stage, 2, SUFFIXES[1], PREFIX[:length])
    check_next(stage, 1, SUFFIXES[1], PREFIX, SUFFIXES[0])


def test_a_fork_is_not_changed_by_its_source(stage: StageModel) -> None:
    begin(stage)
    for sequence in (2, 3):
        stage.fork(1, sequence, 15, 30)
    stage.truncate(1, 4)
    stage.extend(1, SUFFIXES[0])
    check_next(stage, 2, SUFFIXES[1], PREFIX[:15])
    stage.free(1)
    stage.open(4, 30)
    stage.extend(4, states(30, 5))  # may lie where the source lay
    check_next(stage, 3, SUFFIXES[1], PREFIX[:15])


def test_a_fork_of_a_fork_begins_as_the_first_did(stage: StageModel) -> None:
    begin(stage)
    stage.fork(1, 2, 15, 30)
    stage.extend(2, SUFFIXES[0])
    stage.fork(2, 3, 18, 30)
    stage.free(2)
    check_next(stage, 3, SUFFIXES[1], PREFIX[:15], SUFFIXES[0][:3])


def test_one_of_a_batch_is_forked_and_all_go_on_together(stage: StageModel) -> None:
    given = {n: states(4 + n, n) for n in (1, 2, 3)}
    for n, hidden in given.items():
        stage.open(n, 40)
        stage.extend(n, hidden)
    for turn in range(6):
        batch = list(given)
        rows = states(len(batch), 20 + turn)
        expected = [alone(stage, given[n], rows[i : i + 1])[0] for i, n in enumerate(batch)]
        np.testing.assert_allclose(stage.decode(batch, rows), expected, rtol=1e-4, atol=1e-5)
        given = {n: np.concatenate([given[n], rows[i : i + 1]]) for i, n in enumerate(batch)}
        if turn in (1, 3):  # a batch that comes again lies together by now
            stage.fork(2, 5 + turn, 5, 40)
            given[5 + turn] = given[2][:5]
    for n, hidden in given.items():
        check_next(stage, n, SUFFIXES[0], hidden)


def test_a_fork_onto_an_open_sequence_replaces_it(stage: StageModel) -> None:
    begin(stage)
    stage.open(2, 60)
    stage.extend(2, states(50, 3))
    stage.fork(1, 2, 10, 15)
    assert stage.length(2) == 10
    check_next(stage, 2, SUFFIXES[0][:5], PREFIX[:10])
    with pytest.raises(SequenceFault, match="16 positions"):
        stage.extend(2, states(1))


def test_what_cannot_be_forked_is_named_and_leaves_all_as_it_was(stage: StageModel) -> None:
    begin(stage)
    stage.open(2, 30)
    stage.extend(2, PREFIX[:3])
    for source, length in ((7, 5), (1, 21)):
        with pytest.raises(SequenceFault) as fault:
            stage.fork(source, 2, length, 30)
        assert fault.value.sequences == (source,)
    for sequence, length, capacity in ((2, 0, 30), (2, -1, 30), (2, 10, 9), (1, 5, 30)):
        with pytest.raises(StageFault, match="cannot begin with"):
            stage.fork(1, sequence, length, capacity)
    with pytest.raises(StageFault, match=f"context of {TINY.context}"):
        stage.fork(1, 2, 5, TINY.context + 1)
    check_next(stage, 1, SUFFIXES[0], PREFIX)
    check_next(stage, 2, SUFFIXES[0], PREFIX[:3])


def test_memory_is_counted_once_per_sequence_and_given_back(stage: StageModel) -> None:
    begin(stage)
    one = stage.kv_bytes
    stage.fork(1, 2, 20, 30)
    assert stage.kv_bytes == 2 * one
    stage.free(1)
    assert stage.kv_bytes == one
    stage.free(2)
    assert stage.kv_bytes == 0


def test_a_sequence_grows_up_to_its_new_capacity(stage: StageModel) -> None:
    begin(stage)
    stage.resize(1, 22)
    with pytest.raises(SequenceFault, match="23 positions"):
        stage.extend(1, states(3))
    stage.resize(1, 300)
    check_next(stage, 1, SUFFIXES[0], PREFIX)
    check_next(stage, 1, states(31, 7), PREFIX, SUFFIXES[0])
    stage.extend(1, states(240, 8))
    assert stage.length(1) == 300
    stage.truncate(1, 20)
    stage.resize(1, 20)
    assert stage.length(1) == 20
    stage.resize(1, 40)
    check_next(stage, 1, SUFFIXES[0], PREFIX)


def test_less_capacity_gives_memory_back(stage: StageModel) -> None:
    begin(stage)
    one = stage.kv_bytes
    stage.resize(1, 500)
    stage.extend(1, states(480, 1))
    assert stage.kv_bytes > one
    stage.truncate(1, 20)
    stage.resize(1, 20)
    assert stage.kv_bytes == one


def test_what_cannot_be_resized_is_named_and_leaves_it_as_it_was(stage: StageModel) -> None:
    begin(stage)
    with pytest.raises(SequenceFault) as fault:
        stage.resize(7, 30)
    assert fault.value.sequences == (7,)
    for capacity, message in ((19, "a sequence of 20 positions does not fit 19"), (TINY.context + 1, "context")):
        with pytest.raises(StageFault, match=message):
            stage.resize(1, capacity)
    check_next(stage, 1, SUFFIXES[0], PREFIX)


def test_resizing_one_of_a_batch_changes_no_number(stage: StageModel) -> None:
    given = {n: states(4 + n, n) for n in (1, 2)}
    for n, hidden in given.items():
        stage.open(n, 8)
        stage.extend(n, hidden)
    stage.decode([1, 2], states(2, 9))
    stage.resize(2, 7)
    with pytest.raises(SequenceFault) as fault:
        stage.decode([1, 2], states(2))
    assert fault.value.sequences == (2,)
    stage.resize(2, 40)
    stage.decode([1, 2], states(2, 10))
    check_next(stage, 2, SUFFIXES[0], given[2], states(2, 9)[1:], states(2, 10)[1:])


def test_the_mlx_stage_reserves_no_memory_that_is_not_free(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = MlxBackend().load_stage(checkpoint, LAYERS, EXACT)
    step = stage._sample.bytes_at(1)
    stage.open(1, 256)
    stage.extend(1, PREFIX)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=step))
    with pytest.raises(StageFault, match="of KV cache in layers 1-2"):
        stage.fork(1, 2, 20, 257)
    with pytest.raises(StageFault, match="no sequence 2"):
        stage.length(2)
    stage.resize(1, 512)  # the one step that is free is promised now
    with pytest.raises(StageFault, match="of KV cache in layers 1-2"):
        stage.fork(1, 2, 20, 30)
    stage.resize(1, 256)
    stage.fork(1, 2, 20, 30)


def test_a_copy_that_memory_cannot_hold_leaves_nothing_half_open(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = MlxBackend().load_stage(checkpoint, LAYERS, EXACT)
    begin(stage)
    with monkeypatch.context() as patch:
        patch.setattr("edgepp.backend.mlx.kv_cache._beginning", _fail)
        with pytest.raises(StageFault, match="Unable to allocate"):
            stage.fork(1, 2, 10, 30)
    with pytest.raises(StageFault, match="no sequence 2"):
        stage.length(2)
    check_next(stage, 1, SUFFIXES[0], PREFIX)


def test_the_onnx_stage_names_a_shortage_of_address_space(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_arena, "LANES", 1)
    stage = OnnxBackend().load_stage(checkpoint, LAYERS, EXACT)
    begin(stage)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_arena.Arena, "_map", lambda *_: False)
        with pytest.raises(StageFault, match="memory for another sequence is short"):
            stage.fork(1, 2, 10, 30)
    with pytest.raises(StageFault, match="no sequence 2"):
        stage.length(2)
    check_next(stage, 1, SUFFIXES[0], PREFIX)


def test_families_whose_caches_cannot_be_truncated_say_so(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, TINY)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stage: MlxStage = MlxBackend().load_stage(Checkpoint.open(tmp_path), LAYERS, EXACT)
    begin(stage)
    assert not stage.rewinds
    with pytest.raises(StageFault, match="layers 1-2 cannot be truncated"):
        stage.fork(1, 2, 5, 30)
    stage.resize(1, 60)
    stage.extend(1, states(35))


def _fail(*_: Any) -> None:
    raise RuntimeError("[malloc] Unable to allocate 17 bytes.")
