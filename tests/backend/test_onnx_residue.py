"""Weights that MLX did not quantise itself: biases between integer zero points, or codes of several widths."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from edgepp.backend.base import BackendOptions
from edgepp.backend.onnx.backend import OnnxBackend
from edgepp.backend.onnx.weights import quantised
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint
from tests import reference

Array = npt.NDArray[Any]

DEFAULT = BackendOptions()
EXACT = BackendOptions(exact=True)
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def shifted(tmp_path: Path) -> Checkpoint:
    """Every bias is up to half a step away from an integer zero point, as in weights from GGUF's Q4_1."""
    path = make_checkpoint(tmp_path, replace(TINY, bits=4, group_size=32, dtype="float16"))
    tensors = dict(mx.load(str(path / "model.safetensors")))
    for name in [name for name in tensors if name.endswith(".biases")]:
        scales = tensors[name.removesuffix("biases") + "scales"]
        tensors[name] += scales * mx.random.uniform(-0.5, 0.5, scales.shape, key=mx.random.key(5)).astype(mx.float16)
    mx.save_safetensors(str(path / "model.safetensors"), tensors)
    return Checkpoint.open(path)


@pytest.fixture
def mixed(tmp_path: Path) -> Checkpoint:
    """Values in 6 bits, one linear not quantised, the others in 4 bits."""
    path = make_checkpoint(tmp_path, TINY)
    config = json.loads((path / "config.json").read_text())
    config["quantization"] = settings = {"bits": 4, "group_size": 32}
    tensors = {}
    for name, weight in dict(mx.load(str(path / "model.safetensors"))).items():
        module = name.removesuffix(".weight")
        tensors[name] = weight
        if module.endswith("proj") and module != Q_PROJ:
            own = {"bits": 6, "group_size": 64} if module.endswith("v_proj") else {"bits": 4, "group_size": 32}
            settings |= {module: own} if own["bits"] == 6 else {}
            tensors[name], tensors[f"{module}.scales"], tensors[f"{module}.biases"] = mx.quantize(weight, **own)
    mx.save_safetensors(str(path / "model.safetensors"), tensors)
    (path / "config.json").write_text(json.dumps(config))
    return Checkpoint.open(path)


def logits(checkpoint: Checkpoint, ids: list[int], options: BackendOptions, cuts: tuple[int, ...] = (0, 4)) -> Array:
    ends = OnnxBackend().load_embedding_and_head(checkpoint, options)
    hidden = ends.embed(ids)
    for start, stop in pairwise(cuts):
        stage = OnnxBackend().load_stage(checkpoint, LayerRange(start, stop), options)
        stage.open(0, len(ids))
        hidden = stage.extend(0, hidden)
    return ends.logits(hidden)


@pytest.mark.parametrize("model", ["shifted", "mixed"])
def test_logits_are_mlx_lms(model: str, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(model)
    ids = list(range(1, 61))
    expected = reference.logits(checkpoint.path, ids)
    np.testing.assert_allclose(logits(checkpoint, ids, EXACT), expected, atol=2e-4)
    apart = logits(checkpoint, ids, DEFAULT) - expected
    assert np.sqrt(np.mean(apart**2)) < 0.05 * expected.std()


@pytest.mark.parametrize("options", [DEFAULT, EXACT], ids=["default", "exact"])
@pytest.mark.parametrize("model", ["shifted", "mixed"])
def test_a_split_is_bit_identical(model: str, options: BackendOptions, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(model)
    ids = list(range(1, 31))
    whole = logits(checkpoint, ids, options)
    np.testing.assert_array_equal(logits(checkpoint, ids, options, (0, 1, 3, 4)), whole)


def test_only_foreign_biases_are_corrected(shifted: Checkpoint) -> None:
    residue = quantised(shifted, [Q_PROJ]).residue
    assert residue is not None
    steps = np.abs(residue) / np.abs(shifted.array(f"{Q_PROJ}.scales").astype(np.float32))
    assert 0.2 < steps.mean() < 0.3
