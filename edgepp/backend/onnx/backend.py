"""The CPU backend: a layer range is one ONNX Runtime graph, built in memory from MLX's weights.

By default linears multiply by int8 activations, as llama.cpp does; ``BackendOptions.exact`` computes in float32.
"""

from __future__ import annotations

from edgepp.backend.base import BackendOptions, Progress
from edgepp.backend.loader import Reduction
from edgepp.backend.onnx.architecture import read_architecture
from edgepp.backend.onnx.embedding_and_head import OnnxEmbeddingAndHead, OnnxHead
from edgepp.backend.onnx.stage import OnnxStage
from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint


def fits(checkpoint: Checkpoint) -> bool:
    """Whether this backend can run the model of ``checkpoint``."""
    try:
        read_architecture(checkpoint)
    except ModelError:
        return False
    return True


class OnnxBackend:
    """Loader of stages, or of embedding and head, for ONNX Runtime on the CPU."""

    name = "onnx"

    def load_stage(
        self,
        checkpoint: Checkpoint,
        layers: LayerRange,
        options: BackendOptions,
        progress: Progress | None = None,
    ) -> OnnxStage:
        """Load decoder layers ``layers`` of the checkpoint and nothing else; ``progress`` is told the bytes loaded.

        Raises:
            ModelError: the checkpoint lacks these tensors, or this backend cannot run the family.
        """
        return OnnxStage(checkpoint, layers, options, progress)

    def load_rank(
        self,
        checkpoint: ShardedCheckpoint,
        layers: LayerRange,
        options: BackendOptions,
        reduction: Reduction,
        progress: Progress | None = None,
    ) -> OnnxStage:
        """Load one rank's part of decoder layers ``layers``; every half of a layer is one session.

        Raises:
            ModelError: the checkpoint lacks these tensors, or this backend cannot run the family.
        """
        return OnnxStage(checkpoint, layers, options, progress, reduction)

    def load_head(self, checkpoint: Checkpoint, options: BackendOptions) -> OnnxHead:
        """Load the final norm and the output head; of a ``ShardedCheckpoint``, the rank's part of the head.

        Raises:
            ModelError: the checkpoint lacks these tensors, or this backend cannot run the family.
        """
        return OnnxHead(checkpoint, options)

    def load_whole(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress | None = None
    ) -> tuple[OnnxStage, OnnxEmbeddingAndHead]:
        """Load all of the checkpoint for one process.

        Raises:
            ModelError: the checkpoint lacks tensors, or this backend cannot run the family.
        """
        stage = self.load_stage(checkpoint, LayerRange(0, checkpoint.num_layers), options, progress)
        return stage, self.load_embedding_and_head(checkpoint, options)

    def load_embedding_and_head(
        self, checkpoint: Checkpoint, options: BackendOptions, *, head_later: bool = False
    ) -> OnnxEmbeddingAndHead:
        """Load embedding, final norm and head of the checkpoint; with ``head_later``, the head only at its first use.

        Raises:
            ModelError: the checkpoint lacks these tensors, or this backend cannot run the family.
        """
        ends = OnnxEmbeddingAndHead(checkpoint, options)
        if not head_later:
            ends.load_head()
        return ends
