"""Shares of the ranks of a tensor-parallel stage: they tile each layer, cut no group, and are near what was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.config.model_config import ModelConfig
from edgepp.model.config.quantisation import Quantisation, Quantisations
from edgepp.model.config.rope import RopeConfig
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.tensor_shares import TensorShare, apportion, parse_weights, share_out
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint

WEIGHTS = st.lists(st.integers(1, 20), min_size=1, max_size=6)


def model(
    kv_heads: int = 8, per_head: int = 4, head_dim: int = 64, ffn: int = 8192, group: int | None = 64, bits: int = 4
) -> ModelConfig:
    usual = None if group is None else Quantisation(bits, group)
    return ModelConfig(
        "m", "llama", 2, 2048, 1000, 4096, True, Quantisations(usual), "float16",
        heads=kv_heads * per_head, kv_heads=kv_heads, head_dim=head_dim, ffn=ffn, rope=RopeConfig(base=10_000.0),
    )  # fmt: skip


def tiles(parts: Sequence[range], total: int) -> bool:
    return [n for part in parts for n in part] == list(range(total)) and all(parts)


@given(
    WEIGHTS,
    st.builds(
        model, kv_heads=st.integers(1, 16), per_head=st.integers(1, 4), head_dim=st.sampled_from((16, 32, 64, 80)),
        ffn=st.integers(1, 40).map(lambda n: 256 * n), group=st.sampled_from((None, 16, 32, 64, 128)),
        bits=st.sampled_from((2, 3, 4, 8)),
    ),
)  # fmt: skip
def test_shares_tile_the_layer_and_cut_no_group(weights: list[int], config: ModelConfig) -> None:
    columns = config.heads * config.head_dim
    usual = config.quantisations.usual
    group = math.lcm(usual.group_size, 32) if usual else 1
    units = -(-config.kv_heads // (group // math.gcd(group, columns // config.kv_heads)))
    equal = len(set(weights)) == 1
    if min(units, config.ffn // math.lcm(group, 32)) < len(weights) or (equal and units % len(weights)):
        with pytest.raises(UsageError) as refused:
            share_out(config, weights)
        assert refused.value.hint
        return
    shares = share_out(config, weights)
    assert tiles([share.kv_heads for share in shares], config.kv_heads)
    assert tiles([share.queries for share in shares], columns)
    assert tiles([share.keys for share in shares], config.kv_heads * config.head_dim)
    assert tiles([share.ffn for share in shares], config.ffn)
    assert tiles([share.vocabulary for share in shares], config.vocab_size)
    for share in shares:
        assert share.queries.start % group == share.ffn.start % group == 0
        assert len(share.queries) * config.kv_heads == len(share.kv_heads) * columns


@given(st.integers(0, 100), WEIGHTS)
def test_units_are_divided_in_proportion(more: int, weights: list[int]) -> None:
    units = len(weights) + more
    counts = apportion(units, weights)
    assert sum(counts) == units
    assert all(counts)
    for count, weight in zip(counts, weights, strict=True):
        assert count < units * weight / sum(weights) + 1


def test_five_to_three_of_eight_heads() -> None:
    shares = share_out(model(), (5, 3))
    assert [len(share.kv_heads) for share in shares] == [5, 3]
    assert [len(share.ffn) for share in shares] == [5120, 3072]
    assert shares[1] == TensorShare(
        1, range(5, 8), range(1280, 2048), range(320, 512), range(5120, 8192), range(640, 1000)
    )


@pytest.mark.parametrize(
    ("config", "weights", "words", "hint"),
    [
        (model(), (1, 1, 1), "8 KV heads.* cannot share equally", "2 ranks, or unequal shares: --tensor 3:3:2"),
        (model(kv_heads=3, per_head=3), (1, 1), "3 KV heads.* cannot share equally", "shares: --tensor 2:1"),
        (model(kv_heads=1), (1, 1), "1 KV heads.* only 1 parts", "leave --tensor out"),
        (model(kv_heads=2), (1, 1, 1), "2 KV heads", "use 2 ranks or fewer"),
        (model(kv_heads=2, per_head=1, head_dim=16), (1, 1), "groups of 64", "leave --tensor out"),
        (model(ffn=128), (1, 1, 1, 1), "128 FFN columns in groups of 64", "use 2 ranks"),
        (replace(model(), family="mixtral"), (1, 1), "family 'mixtral'", "leave --tensor out"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_nearest_shape(
    config: ModelConfig, weights: tuple[int, ...], words: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        share_out(config, weights)
    assert hint in refused.value.hint


def test_weights_as_people_write_them() -> None:
    assert parse_weights("2") == (1, 1)
    assert parse_weights("5:3") == (5, 3)
    for text in ("", "0", "17", "9999", "2:0", "1:1001", "a", "2:", "-1", "1:" * 20 + "1"):
        with pytest.raises(UsageError):
            parse_weights(text)


@pytest.mark.parametrize(
    "shape", [TINY, replace(TINY, bits=3, group_size=32, dtype="bfloat16"), replace(TINY, family="qwen2")], ids=str
)
def test_parts_of_all_ranks_are_the_whole_tensor(shape: object, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m", shape))  # type: ignore[arg-type]
    ranks = [ShardedCheckpoint.of(checkpoint, share) for share in share_out(checkpoint.settings, (1, 1))]
    for name in checkpoint.layer_names(LayerRange(0, 4)):
        whole, parts = checkpoint.array(name), [rank.array(name) for rank in ranks]
        if parts[0].shape == whole.shape:
            np.testing.assert_array_equal(parts[0], whole)
        else:
            axis = -1 if "o_proj" in name or "down_proj" in name else 0
            np.testing.assert_array_equal(np.concatenate(parts, axis), whole)
    layers = LayerRange(0, 4)
    norms = sum(checkpoint.tensors[name].nbytes for name in checkpoint.layer_names(layers) if "norm" in name)
    assert sum(rank.layer_bytes(layers) for rank in ranks) == checkpoint.layer_bytes(layers) + norms
