"""Models that a layer pipeline cannot run are refused before a weight is read."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import KVCache

from edgepp.backend.mlx.cut_points import find_cut_points, find_layers
from edgepp.errors import ModelError


class Layer(nn.Module):
    def __call__(self, hidden: Any, mask: Any = None, cache: Any = None) -> Any:
        raise AssertionError("a tapped forward pass must not call layers")


class Toy(nn.Module):
    """A model that a pipeline can run; the others change one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.blocks = [Layer() for _ in range(3)]

    @property
    def layers(self) -> list[Any]:
        return list(self.blocks)  # a copy, as the pipeline families of mlx-lm give

    def make_cache(self) -> list[Any]:
        return [KVCache() for _ in self.blocks]

    def __call__(self, tokens: Any, cache: Any) -> Any:
        hidden = self.embedding(tokens)
        for block, entry in zip(self.blocks, cache, strict=True):
            hidden = block(hidden, "causal", entry)
        return hidden


class Reversed(Toy):
    def __call__(self, tokens: Any, cache: Any) -> Any:
        hidden = self.embedding(tokens)
        for block, entry in zip(self.blocks[::-1], cache, strict=True):
            hidden = block(hidden, None, entry)
        return hidden


class Scaled(Toy):
    def __call__(self, tokens: Any, cache: Any) -> Any:
        hidden = self.embedding(tokens)
        for block, entry in zip(self.blocks, cache, strict=True):
            hidden = block(hidden, None, entry) * 2
        return hidden


class Reinforced(Toy):
    def __call__(self, tokens: Any, cache: Any) -> Any:
        hidden = first = self.embedding(tokens)
        for block, entry in zip(self.blocks, cache, strict=True):
            hidden = block(hidden, first, entry)
        return hidden


class SharedCache(Toy):
    def __call__(self, tokens: Any, cache: Any) -> Any:
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden, None, cache[0])
        return hidden


class Blackboard(Toy):
    def __call__(self, tokens: Any, cache: Any) -> Any:
        hidden, board = self.embedding(tokens), {}
        for block, entry in zip(self.blocks, cache, strict=True):
            hidden = block(hidden, board, entry)
        return hidden


class Pairs(Toy):
    def __call__(self, tokens: Any, cache: Any) -> Any:
        hidden = self.embedding(tokens)
        for block, entry in zip(self.blocks, cache, strict=True):
            hidden, _ = block(hidden, None, entry)
        return hidden


def test_cut_points_are_the_list_and_the_cache_entries() -> None:
    model = Toy()
    blocks = list(model.blocks)
    cut_points = find_cut_points(model, "toy", 3)
    assert cut_points.layers is model.blocks
    assert list(cut_points.layers) == blocks  # the taps are gone
    assert cut_points.cache_entries == {0: 0, 1: 1, 2: 2}
    assert find_layers(model, "toy")[0] == "blocks"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Reversed, "once each and in order"),
        (Scaled, "changes the hidden states between layers 0 and 1"),
        (Reinforced, "needs more than the hidden states"),
        (SharedCache, "layer 1 shares a KV cache"),
        (Blackboard, "share a dict"),
        (Pairs, "hand on more than hidden states"),
    ],
)
def test_the_refusal_gives_the_reason(model: type[Toy], reason: str) -> None:
    mx.random.seed(1)
    with pytest.raises(ModelError, match=f"family 'toy' does not fit a layer pipeline: .*{reason}"):
        find_cut_points(model(), "toy", 3)


def test_the_number_of_layers_is_checked() -> None:
    with pytest.raises(ModelError, match="runs 3 layers where its configuration says 4"):
        find_cut_points(Toy(), "toy", 4)


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="not one list"):
        find_layers(nn.Linear(2, 2), "toy")
