"""Keys and values that a stage of several ranks exports and imports: those of an ordinary stage, whatever the shares.

A group passes the tests of ordinary stages, which are imported here, and exchanges pieces with other kinds of stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepp import backend
from edgepp.backend.base import BackendOptions, StageModel
from edgepp.backend.kv_layout import join_heads, split_heads
from edgepp.errors import PeerLost, StageFault
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.ranks import KvExported
from tests.backend.kv_copying import CAPACITY, LAYERS, begin, check_same, copy, export, states
from tests.backend.test_kv_transfer import (  # noqa: F401 - collected here, for the fixture ``stage`` of this file
    test_a_wrong_piece_is_refused_and_leaves_the_sequence_as_it_was,
    test_an_import_into_one_of_a_batch_leaves_the_others,
    test_an_imported_sequence_computes_what_the_original_computes,
    test_computing_forgets_what_was_imported_beyond_the_length,
    test_exports_do_not_change_what_a_sequence_computes,
    test_imported_sequences_are_truncated_forked_and_resized,
    test_one_position_after_each_step_gives_a_second_copy_that_goes_on,
    test_pieces_may_end_anywhere,
    test_sequences_of_a_batch_are_exported_and_imported,
    test_the_length_grows_only_over_what_every_layer_has,
    test_what_cannot_be_exported_is_named,
)
from tests.live_ranks import first_rank

SHAPE = replace(TINY, heads=8, kv_heads=8, bits=4, group_size=32, head_size=32)
"""Hidden states as wide as those of the imported tests."""
KINDS = [("onnx", None), ("onnx", 8), ("mlx", None), ("mlx", 4)]
"""Backend, and bits per key or value."""
SHARES = [(1, 1), (5, 3), (2, 1, 1)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", SHAPE)


@contextmanager
def group_of(path: Path, weights: tuple[int, ...], name: str, kv_bits: int | None) -> Iterator[tuple[Any, Any]]:
    options = BackendOptions(exact=True, kv_bits=kv_bits)
    with first_rank(path, weights, name, options, layers=LAYERS) as (stage, live):
        yield stage, live


@pytest.fixture(params=KINDS, ids=str)
def stage(request: pytest.FixtureRequest, path: Path) -> Iterator[StageModel]:
    """A group of unequal shares."""
    with group_of(path, (5, 3), *request.param) as (stage, live):
        yield stage
        assert not live.errors


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_pieces_go_between_groups_and_ordinary_stages(kind: tuple[str, int | None], path: Path) -> None:
    name, kv_bits = kind
    checkpoint = Checkpoint.open(path)
    whole = backend.choose(name, checkpoint).load_stage(checkpoint, LAYERS, BackendOptions(exact=True, kv_bits=kv_bits))
    begin(whole, 1, 40)
    with ExitStack() as owned:
        groups = [owned.enter_context(group_of(path, shares, *kind))[0] for shares in SHARES]
        before: StageModel = whole
        for after in (*groups, whole):
            assert after.kv_layout == before.kv_layout
            copy(before, 1, 2 if after is whole else 1, [7, 23, 40], to=after)
            before = after
        assert export(whole, 2, LAYERS, 0, 40) == export(whole, 1, LAYERS, 0, 40)
        for group in groups:
            for hidden in (states(1, 2), states(9, 3)):
                whole.fork(1, 3, whole.length(1), CAPACITY)
                expected = whole.extend(3, hidden)
                group.fork(1, 3, 40, CAPACITY)
                np.testing.assert_allclose(group.extend(3, hidden), expected, atol=1e-4 * np.abs(expected).max())


def test_float32_goes_from_a_group_of_one_backend_to_one_of_the_other(path: Path) -> None:
    with group_of(path, (1, 1), "onnx", None) as (old, _), group_of(path, (5, 3), "mlx", None) as (new, _):
        begin(old, 1, 40)
        copy(old, 1, 1, [40], to=new)
        assert export(new, 1, LAYERS, 0, 40) == export(old, 1, LAYERS, 0, 40)
        expected = old.extend(1, states(9, 3))
        np.testing.assert_allclose(new.extend(1, states(9, 3)), expected, atol=1e-4 * np.abs(expected).max())


def test_groups_of_the_same_shares_go_on_bit_for_bit(path: Path) -> None:
    with group_of(path, (5, 3), "onnx", None) as (old, _), group_of(path, (5, 3), "onnx", None) as (new, _):
        begin(old, 1, 40)
        copy(old, 1, 1, [20, 40], to=new)
        check_same(old, [1], [1], other=new)


def test_a_rank_that_cannot_import_ends_the_sequence_on_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with group_of(path, (1, 1), "onnx", None) as (stage, live):
        begin(stage, 1, 20)
        piece, mine = stage.export_kv(1, LAYERS, 0, 20), stage._model
        original = type(mine).import_kv

        def refuse(model: StageModel, *arguments: Any) -> None:
            if model is not mine:
                raise StageFault("memory is short")
            original(model, *arguments)

        stage.open(2, CAPACITY)
        with monkeypatch.context() as patch:
            patch.setattr(type(mine), "import_kv", refuse)
            stage.import_kv(2, LAYERS, 0, 20, piece)
            with pytest.raises(StageFault, match="rank 1: memory is short"):
                stage.set_length(2, 20)
        with pytest.raises(StageFault, match="no sequence 2"):
            stage.length(2)
        copy(stage, 1, 2, [20])
        check_same(stage, [1], [2])
        assert not live.errors


def test_a_rank_that_exports_something_else_ends_the_group(path: Path) -> None:
    lost: list[PeerLost] = []
    with first_rank(path, (1, 1), layers=LAYERS, lost=lost) as (stage, live):
        begin(stage, 1, 20)
        live.groups[1].send(0, [encode(KvExported("")), b"12"])
        with pytest.raises(PeerLost, match="rank 1 of the stage broke the protocol"):
            stage.export_kv(1, LAYERS, 0, 20)
        assert lost


def test_long_ranges_go_in_several_messages(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with group_of(path, (5, 3), "onnx", None) as (stage, _):
        begin(stage, 1, 20)
        expected = export(stage, 1, LAYERS, 0, 20)
        most = stage._max_kv_bytes
        monkeypatch.setattr(stage, "_max_kv_bytes", len(expected) // 2)
        assert [len(chunk) for chunk in stage.export_kv(1, LAYERS, 0, 20)] == [len(expected) // 2] * 2
        assert export(stage, 1, LAYERS, 0, 20) == expected
        copy(stage, 1, 2, [20])
        stage.open(3, CAPACITY)
        stage.import_kv(3, LAYERS, 0, 20, [expected])
        stage.set_length(3, 20)
        monkeypatch.setattr(stage, "_max_kv_bytes", len(expected) // 2 - 1)
        with pytest.raises(StageFault, match="20 positions are too many for one message"):
            stage.export_kv(1, LAYERS, 0, 20)
        monkeypatch.setattr(stage, "_max_kv_bytes", most)
        check_same(stage, [2], [3])


def test_parts_of_heads_and_whole_pieces_are_inverse(path: Path) -> None:
    with group_of(path, (2, 1, 1), "mlx", 4) as (stage, _):
        begin(stage, 1, 12)
        piece, layout = export(stage, 1, LayerRange(1, 2), 3, 12), stage._layout
        parts = split_heads(layout, (4, 2, 2), piece, 1, 9)
        assert [len(part) * 4 for part in parts] == [2 * len(piece), len(piece), len(piece)]
        assert join_heads(layout, (4, 2, 2), parts, 1, 9) == piece
        assert parts[0] == b"".join(stage._model.export_kv(1, LayerRange(1, 2), 3, 12))
