"""A model folder is read exactly; damaged and hostile files are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepp.errors import ModelError, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.config.quantisation import Quantisation
from edgepp.model.random_checkpoint import LLAMA3_ROPE, TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint, layer_of
from edgepp.model.weights.safetensors_header import read_header

mx = pytest.importorskip("mlx.core")

FOUR_BITS = replace(TINY, bits=4, group_size=32, embedding_bits=8, dtype="float16")


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_are_what_mlx_reads(tmp_path: Path, files: int, dtype: str) -> None:
    folder = make_checkpoint(tmp_path / "m", replace(FOUR_BITS, dtype=dtype), files=files)
    checkpoint = Checkpoint.open(folder)
    theirs: dict[str, Any] = {}
    for file in folder.glob("*.safetensors"):
        theirs |= mx.load(str(file))
    assert checkpoint.tensors.keys() == theirs.keys()
    for name, tensor in theirs.items():
        mine = checkpoint.array(name)
        assert mine.shape == tensor.shape
        wide = np.uint32 if mine.dtype == np.uint32 else np.float32
        other = tensor if tensor.dtype == mx.uint32 else tensor.astype(mx.float32)
        np.testing.assert_array_equal(mine.astype(wide), np.array(other))


def test_configuration(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m", FOUR_BITS, rope_scaling=LLAMA3_ROPE))
    assert (checkpoint.family, checkpoint.num_layers, checkpoint.hidden_size) == ("llama", 4, 64)
    assert (checkpoint.vocab_size, checkpoint.context) == (320, 512)
    assert checkpoint.config["rope_scaling"]["rope_type"] == "llama3"
    assert checkpoint.quantisation("model.embed_tokens") == Quantisation(8, 32)
    assert checkpoint.quantisation("model.layers.0.mlp.up_proj") == Quantisation(4, 32)
    assert checkpoint.quantisation("model.norm") is None


def test_layers_and_bytes(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m", FOUR_BITS))
    assert checkpoint.layer_bytes(LayerRange(1, 3)) == 2 * FOUR_BITS.layer_bytes()
    assert {layer_of(name) for name in checkpoint.layer_names(LayerRange(1, 3))} == {1, 2}
    checkpoint.require(LayerRange(0, 4))
    with pytest.raises(ModelError, match="which has layers 0-3"):
        checkpoint.require(LayerRange(2, 5))


def test_weights_keep_the_size_of_activations(tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    shape = replace(TINY, layers=12, bits=4, group_size=32)
    model, _ = load_model(make_checkpoint(tmp_path / "m", shape))
    logits = model(mx.array([[1, 2, 3, 4]]))
    assert 0.5 < float(mx.std(logits)) < 2.0


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    one = make_checkpoint(tmp_path / "one", FOUR_BITS, seed=3)
    three = make_checkpoint(tmp_path / "three", FOUR_BITS, seed=3, files=3)
    other = make_checkpoint(tmp_path / "other", FOUR_BITS, seed=4)
    first, second, third = (Checkpoint.open(path) for path in (one, three, other))
    for name in first.tensors:
        np.testing.assert_array_equal(first.array(name), second.array(name))
    name = "model.layers.0.mlp.up_proj.weight"
    assert not np.array_equal(first.array(name), third.array(name))


def test_shapes_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="group size 128"):
        make_checkpoint(tmp_path / "m", replace(TINY, bits=4, group_size=128))
    with pytest.raises(ModelError, match="family 'mamba'"):
        make_checkpoint(tmp_path / "m", replace(TINY, family="mamba"))
    with pytest.raises(UsageError, match="5 files"):
        make_checkpoint(tmp_path / "m", TINY, files=5)
    with pytest.raises(UsageError, match="vocabulary of 259"):
        make_checkpoint(tmp_path / "m", replace(TINY, vocabulary=100))
    with pytest.raises(ModelError, match="holds no tokenizer"):
        make_checkpoint(tmp_path / "m", TINY, tokenizer=tmp_path)


def test_a_partly_fetched_file_shows_only_what_it_holds(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", TINY)
    held = [name for name in Checkpoint.open(folder).tensors if layer_of(name) == 2]
    (folder / "model.safetensors.partial.json").write_text(json.dumps({"tensors": held}))
    checkpoint = Checkpoint.open(folder)
    assert sorted(checkpoint.tensors) == sorted(held)
    checkpoint.require(LayerRange(2, 3))
    with pytest.raises(ModelError, match="lacks the tensors of layer 1"):
        checkpoint.require(LayerRange(1, 3))
    with pytest.raises(ModelError, match=r"no tensor model\.norm\.weight"):
        checkpoint.array("model.norm.weight")


def test_the_fingerprint_is_that_of_the_model_not_of_the_tensors_on_disk(tmp_path: Path) -> None:
    whole = make_checkpoint(tmp_path / "a", TINY)
    part = make_checkpoint(tmp_path / "b", TINY)
    other = make_checkpoint(tmp_path / "c", replace(TINY, layers=3))
    (part / "model.safetensors.partial.json").write_text('{"tensors": []}')
    assert Checkpoint.open(whole).fingerprint == Checkpoint.open(part).fingerprint
    assert Checkpoint.open(whole).fingerprint != Checkpoint.open(other).fingerprint


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("key", ["auto_map", "model_file"])
def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path, key: str) -> None:
    folder = make_checkpoint(tmp_path / "m", TINY)
    change_config(folder, **{key: "evil.py"})
    with pytest.raises(ModelError, match="run code of its own"):
        Checkpoint.open(folder)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="does not hold a JSON object"):
        Checkpoint.open(tmp_path)


def test_other_quantisation_modes_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", FOUR_BITS)
    change_config(folder, quantization={"mode": "mxfp4", "bits": 4, "group_size": 32})
    with pytest.raises(ModelError, match="mode 'mxfp4'"):
        Checkpoint.open(folder).quantisation("model.layers.0.mlp.up_proj")


GOOD_ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"data_offsets": [0, 32]}, "do not match its shape"),
        ({"shape": [2, 4], "data_offsets": [0, 32]}, "outside the file"),
        ({"shape": [-2, -2]}, "negative size"),
        ({"data_offsets": [-16, 0]}, "negative size"),
        ({"data_offsets": [16, 0]}, "do not match its shape"),
        ({"dtype": "Q4"}, "damaged"),
        ({"shape": None}, "damaged"),
        ({"shape": ["2", 2]}, "damaged"),
        ({"data_offsets": [0]}, "damaged"),
        ({"data_offsets": [0.0, 16.0]}, "damaged"),
        ({"shape": [2**40, 2**40]}, "do not match its shape"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, entry: dict[str, Any], fault: str) -> None:
    raw = json.dumps({"t": {**GOOD_ENTRY, **entry}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(16))
    with pytest.raises(ModelError, match=fault):
        read_header(file)


@pytest.mark.parametrize("data", [b"", b"1234", (2**60).to_bytes(8, "little") + b"{}", bytes(8) + b"{}"])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_header(file)


def test_a_header_that_is_not_an_object_is_refused(tmp_path: Path) -> None:
    for raw in (b"[1]", b"{", b'{"t": 3}', b"\xff\xfe", b"[" * 200_000):
        file = tmp_path / "model.safetensors"
        file.write_bytes(len(raw).to_bytes(8, "little") + raw)
        with pytest.raises(ModelError, match="damaged"):
            read_header(file)
