"""Random checkpoints, one per configuration and test run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepp.model.catalogue.cards import Card, Shape
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint


class Checkpoints:
    """Factory that makes each configuration once in ``root``. Callers only read the checkpoints."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[str, Path] = {}

    def __call__(
        self,
        shape: Shape = TINY,
        *,
        seed: int = 0,
        files: int = 1,
        rope_theta: float = 10_000.0,
        rope_scaling: Mapping[str, Any] | None = None,
    ) -> Path:
        """The folder of this configuration; the parameters are those of ``make_checkpoint``."""
        options: dict[str, Any] = {"seed": seed, "files": files, "rope_theta": rope_theta, "rope_scaling": rope_scaling}
        key = json.dumps([asdict(shape), options], sort_keys=True, default=dict)
        if key not in self._made:
            self._made[key] = make_checkpoint(self._root / str(len(self._made)) / "tiny", shape, **options)
        return self._made[key]


def assert_bytes_equal(card: Card, checkpoint: Checkpoint) -> None:
    """Fail unless the card says of each part of the model what the checkpoint stores."""
    layers = [0] * card.layers
    ends = {"model.embed_tokens": 0, "head": 0}
    for name, place in checkpoint.tensors.items():
        if name.startswith("model.layers."):
            layers[int(name.split(".")[2])] += place.nbytes
        else:
            ends["model.embed_tokens" if "embed_tokens" in name else "head"] += place.nbytes
    assert layers == [card.bytes_per_layer] * card.layers
    assert ends == {"model.embed_tokens": card.bytes_embedding, "head": card.bytes_head}
