"""Parts of the output head against the whole head of the same backend, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgepp import backend
from edgepp.backend.base import BackendOptions
from edgepp.errors import ModelError
from edgepp.model.random_checkpoint import TINY
from edgepp.model.tensor_shares import share_out
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint
from tests.builders.checkpoints import Checkpoints

WIDE = replace(TINY, heads=8, kv_heads=8, hidden=128, ffn=256, vocabulary=1000)
QUANTISED = replace(WIDE, bits=4, group_size=32, heads=16, dtype="float16")
SHAPES = {
    "f32": WIDE,
    "bf16": replace(WIDE, dtype="bfloat16"),
    "bf16-untied": replace(WIDE, dtype="bfloat16", tied=False),
    "q4": QUANTISED,
    "q4-untied": replace(QUANTISED, tied=False),
    "q8": replace(QUANTISED, bits=8),
    "q3": replace(QUANTISED, bits=3),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("heads"))


@pytest.mark.parametrize("name", ["onnx", "mlx"])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_give_the_bits_of_the_whole_head(shape: str, name: str, checkpoints: Checkpoints) -> None:
    checkpoint = Checkpoint.open(checkpoints(SHAPES[shape]))
    chosen = backend.choose(name, checkpoint)
    for options in (BackendOptions(exact=True), BackendOptions()):
        whole = chosen.load_embedding_and_head(checkpoint, options)
        later = chosen.load_embedding_and_head(checkpoint, options, head_later=True)
        for rows in (1, 3):
            hidden = np.random.default_rng(rows).normal(size=(rows, 128)).astype(np.float32)
            expected = whole.logits(hidden)
            np.testing.assert_array_equal(later.logits(hidden), expected)
            for weights in ((1, 1), (5, 3), (2, 1, 1)):
                shares = share_out(checkpoint.settings, weights)
                heads = [chosen.load_head(ShardedCheckpoint.of(checkpoint, one), options) for one in shares]
                found = [head.logits(hidden) for head in heads]
                assert [part.shape for part in found] == [(rows, len(share.vocabulary)) for share in shares]
                np.testing.assert_array_equal(np.concatenate(found, axis=1), expected)


@pytest.mark.parametrize("name", ["onnx", "mlx"])
def test_a_folder_without_the_head_is_refused(name: str, checkpoints: Checkpoints) -> None:
    checkpoint = Checkpoint.open(checkpoints(SHAPES["q4-untied"]))
    tensors = {key: place for key, place in checkpoint.tensors.items() if not key.startswith("lm_head")}
    share = share_out(checkpoint.settings, (1, 1))[0]
    partial = replace(ShardedCheckpoint.of(checkpoint, share), tensors=tensors)
    with pytest.raises(ModelError, match="lm_head"):
        backend.choose(name, checkpoint).load_head(partial, BackendOptions())


@pytest.mark.parametrize("name", ["onnx", "mlx"])
def test_a_rank_needs_no_embedding_where_the_head_is_another_matrix(name: str, checkpoints: Checkpoints) -> None:
    whole = Checkpoint.open(checkpoints(SHAPES["q4-untied"]))
    tensors = {key: place for key, place in whole.tensors.items() if not key.startswith("model.embed_tokens")}
    hidden, (share, _) = np.ones((1, 128), np.float32), share_out(whole.settings, (1, 1))
    found = [
        backend.choose(name, one).load_head(ShardedCheckpoint.of(one, share), BackendOptions()).logits(hidden)
        for one in (whole, replace(whole, tensors=tensors))
    ]
    np.testing.assert_array_equal(*found)
