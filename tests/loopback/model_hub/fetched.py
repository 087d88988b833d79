"""The model of the tests' hub, and comparison of fetched folders with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from edgepp.model.random_checkpoint import TINY
from edgepp.model.weights.checkpoint import Checkpoint, layer_of

SHAPE = replace(
    TINY, layers=8, hidden=256, ffn=1024, heads=4, head_size=64, vocabulary=2048, bits=8, group_size=64, dtype="float16"
)
NAME = "org/model"
REQUEST_SLACK = 300_000  # the header's request takes 256 KiB


def same(folder: Path, original: Path) -> None:
    """Every tensor that the folder shows is the original's."""
    mine, theirs = Checkpoint.open(folder), Checkpoint.open(original)
    for name in mine.tensors:
        np.testing.assert_array_equal(mine.array(name), theirs.array(name))


def layers_in(folder: Path) -> set[int | None]:
    """Decoder layers of the tensors that the folder shows; None for tensors outside the layers."""
    return {layer_of(name) for name in Checkpoint.open(folder).tensors}
