"""Loading a part of a model: nothing else is read, nothing may be missing, memory stays near the stored bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from edgepp.backend.base import BackendOptions
from edgepp.backend.mlx.backend import MlxBackend
from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import Shape
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Array, Checkpoint, layer_of
from edgepp.model.weights.safetensors_header import PARTIAL_SUFFIX, read_header

EXACT = BackendOptions(exact=True)
PART = LayerRange(1, 3)
QUANTISED = replace(TINY, bits=4, group_size=32, dtype="float16")


def in_part(name: str) -> bool:
    layer = layer_of(name)
    return layer is not None and layer in PART


def result(checkpoint: Checkpoint) -> Array:
    """Hidden states of three tokens after layers ``PART``."""
    stage = MlxBackend().load_stage(checkpoint, PART, EXACT)
    stage.open(1, 8)
    hidden = np.random.default_rng(0).normal(size=(3, TINY.hidden)).astype(np.float32)
    return stage.extend(1, hidden)


def keep(folder: Path, wanted: Callable[[str], bool]) -> Checkpoint:
    """Overwrite all other tensors with rubbish, and record that they are not on this disk."""
    file = folder / "model.safetensors"
    held = []
    with file.open("r+b") as stream:
        for place in read_header(file):
            if wanted(place.name):
                held.append(place.name)
            else:
                stream.seek(place.start)
                stream.write(b"\xff" * place.nbytes)
    file.with_name(file.name + PARTIAL_SUFFIX).write_text(json.dumps({"tensors": held}))
    return Checkpoint.open(folder)


@pytest.mark.parametrize("shape", [TINY, QUANTISED])
def test_a_stage_reads_only_its_layers(tmp_path: Path, shape: Shape) -> None:
    folder = make_checkpoint(tmp_path, shape)
    expected = result(Checkpoint.open(folder))
    np.testing.assert_array_equal(result(keep(folder, in_part)), expected)


def test_embedding_and_head_read_no_layer(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, replace(QUANTISED, tied=False))
    hidden = np.ones((2, TINY.hidden), np.float32)
    whole = MlxBackend().load_embedding_and_head(Checkpoint.open(folder), EXACT)
    expected = whole.embed([3, 9]), whole.logits(hidden)
    ends = MlxBackend().load_embedding_and_head(keep(folder, lambda name: layer_of(name) is None), EXACT)
    np.testing.assert_array_equal(ends.embed([3, 9]), expected[0])
    np.testing.assert_array_equal(ends.logits(hidden), expected[1])


def test_a_folder_may_hold_only_the_files_of_the_part(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "whole", TINY, files=4)
    expected = result(Checkpoint.open(folder))
    some = tmp_path / "some"
    some.mkdir()
    for name in ("config.json", "model-00002-of-00004.safetensors", "model-00003-of-00004.safetensors"):
        shutil.copy(folder / name, some)
    np.testing.assert_array_equal(result(Checkpoint.open(some)), expected)


def test_one_missing_tensor_is_named(tmp_path: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    checkpoint = keep(make_checkpoint(tmp_path, TINY), lambda tensor: tensor != name)
    with pytest.raises(ModelError, match=f"lacks 1 tensors of the part to load, among them {name}"):
        result(checkpoint)


def test_a_missing_head_is_not_mistaken_for_a_tied_one(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, replace(TINY, tied=False))
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]  # some families then tie wherever there is no head
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = keep(folder, lambda name: "lm_head" not in name)
    with pytest.raises(ModelError, match=r"outside the layers, among them lm_head\.weight"):
        MlxBackend().load_embedding_and_head(checkpoint, EXACT)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, TINY)
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"has shape .* the model needs"):
        result(Checkpoint.open(folder))


@pytest.mark.parametrize("family", ["nonesuch", "cache", "../llama", ""])
def test_an_unknown_family_is_refused(tmp_path: Path, family: str) -> None:
    folder = make_checkpoint(tmp_path, TINY)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = family
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="mlx-lm cannot build"):
        result(Checkpoint.open(folder))


def test_layers_outside_the_model_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, TINY))
    with pytest.raises(ModelError, match="lie outside"):
        MlxBackend().load_stage(checkpoint, LayerRange(3, 5), EXACT)


def test_progress_ends_at_the_stored_bytes(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, QUANTISED))
    seen: list[tuple[int, int]] = []
    MlxBackend().load_stage(checkpoint, PART, EXACT, lambda done, total: seen.append((done, total)))
    total = checkpoint.layer_bytes(PART)
    assert seen == [(checkpoint.layer_bytes(LayerRange(1, 2)), total), (total, total)]


@pytest.mark.parametrize(
    "shape",
    [
        replace(TINY, hidden=256, ffn=2048),
        replace(TINY, hidden=256, ffn=2048, dtype="bfloat16"),
        replace(TINY, hidden=256, ffn=2048, bits=4, group_size=32, dtype="float16"),
    ],
    ids=["float32", "bfloat16", "4-bit"],
)
def test_memory_stays_near_the_stored_bytes(tmp_path: Path, shape: Shape) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, shape))
    stored = checkpoint.layer_bytes(LayerRange(0, 4))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    stage = MlxBackend().load_stage(checkpoint, LayerRange(0, 4), EXACT)
    cache = stage._sample.nbytes
    assert mx.get_active_memory() - before - cache <= 1.21 * stored  # 4-bit groups of 32: 5 bits become 6
    assert mx.get_peak_memory() - before - cache <= 2 * stored
