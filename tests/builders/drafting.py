"""A small model that guesses, and its greedy continuation of a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgepp import backend
from edgepp.backend.base import BackendOptions, EmbeddingAndHead, StageModel
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint


class SmallModel:
    """All layers and the ends of a checkpoint, in float32."""

    def __init__(self, folder: Path) -> None:
        checkpoint = Checkpoint.open(folder)
        chosen, options = backend.choose("onnx", checkpoint), BackendOptions(threads=1, exact=True)
        layers = LayerRange(0, checkpoint.num_layers)
        self.stage: StageModel = chosen.load_stage(checkpoint, layers, options)
        self.ends: EmbeddingAndHead = chosen.load_embedding_and_head(checkpoint, options)
        self.context = checkpoint.context

    def continuation(self, ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` likeliest tokens behind ``ids``, each behind those before it."""
        text = list(ids)
        for _ in range(count):
            self.stage.open(-1, self.context)
            hidden = self.stage.extend(-1, self.ends.embed(text, 0))
            text.append(int(self.ends.logits(hidden[-1:])[0].argmax()))
        self.stage.free(-1)
        return text[len(ids) :]
