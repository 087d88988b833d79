"""The CPU backend: a layer range is one ONNX Runtime graph, built in memory from MLX's weights.

By default linears multiply by int8 activations, as llama.cpp does; ``BackendOptions.exact`` computes in float32.
"""

from __future__ import annotations

from edgepp.backend.base import BackendOptions, Progress
from edgepp.backend.onnx.architecture import read_architecture
from edgepp.backend.onnx.embedding_and_head import OnnxEmbeddingAndHead
from edgepp.backend.onnx.stage import OnnxStage
from edgepp.errors import ModelError
from edgepp.layers import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint


def fits(checkpoint: Checkpoint) -> bool:
    """Whether this backend can run the model."""
    try:
        read_architecture(checkpoint)
    except ModelError:
        return False
    return True


class OnnxBackend:
    """Loads stages, or embedding and head, for ONNX Runtime on the CPU."""

    name = "onnx"

    def load_stage(
        self,
        checkpoint: Checkpoint,
        layers: LayerRange,
        options: BackendOptions,
        progress: Progress | None = None,
    ) -> OnnxStage:
        """Load decoder layers ``layers`` of the checkpoint and nothing else.

        Raises:
            ModelError: the checkpoint lacks these tensors, or this backend cannot run the family.
        """
        return OnnxStage(checkpoint, layers, options, progress)

    def load_embedding_and_head(self, checkpoint: Checkpoint, options: BackendOptions) -> OnnxEmbeddingAndHead:
        """Load embedding, final norm and head of the checkpoint and nothing else.

        Raises:
            ModelError: the checkpoint lacks these tensors, or this backend cannot run the family.
        """
        return OnnxEmbeddingAndHead(checkpoint, options)
