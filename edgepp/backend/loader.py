"""The interface of a backend, which loads parts of a checkpoint: layers, embedding and head, or one rank's share.

All methods of an object are called in the thread that created the object.
"""

from __future__ import annotations

from typing import Protocol

from edgepp.backend.base import BackendOptions, EmbeddingAndHead, Progress, StageModel
from edgepp.backend.kv_layout import KvLayout
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint


class Reduction(Protocol):
    """The sum over the ranks of a tensor-parallel stage; all ranks call it at the same points of a step."""

    def __call__(self, partial: Array, total: Array, /) -> None:
        """Write into ``total`` the sum of the ``partial`` of all ranks, both float32 (T, D) and C-contiguous.

        The ranks are added in their order, so that all of them get the same bits.

        Raises:
            StageFault: another rank cannot do the step.
        """


class RankModel(StageModel, Protocol):
    """One rank's part of decoder layers; ``kv_layout``, ``export_kv`` and ``import_kv`` concern its heads alone."""

    layout: KvLayout
    """Layout of the keys and values of the rank's heads; ``kv_layout`` is the name of the layout."""


class OutputHead(Protocol):
    """Final norm and output head, whole or one rank's part; called by the compute thread of a stage."""

    def logits(self, hidden: Array) -> Array:
        """Float32 logits (T, V) of the hidden states (T, D) of the last layer; (T, R) of the R token ids of a rank.

        Raises:
            StageFault: the hidden states do not fit the model, or the computation failed.
        """


class Backend(Protocol):
    """A library that computes models, as a loader of parts of a checkpoint."""

    name: str
    """Name of the backend in options and messages."""

    def load_stage(
        self,
        checkpoint: Checkpoint,
        layers: LayerRange,
        options: BackendOptions,
        progress: Progress | None = None,
    ) -> StageModel:
        """Load decoder layers ``layers`` of the checkpoint and nothing else; ``progress`` is told the bytes loaded.

        Raises:
            ModelError: the checkpoint lacks these tensors, or this backend cannot run the family.
        """

    def load_rank(
        self,
        checkpoint: ShardedCheckpoint,
        layers: LayerRange,
        options: BackendOptions,
        reduction: Reduction,
        progress: Progress | None = None,
    ) -> RankModel:
        """Load one rank's part of decoder layers ``layers``; the model returns the hidden states of the whole stage.

        All ranks call the same methods with the same arguments in the same order. Sums over ranks are rounded
        differently from those of a stage of one process.

        Raises:
            ModelError: the checkpoint lacks these tensors, or this backend cannot run the family.
        """

    def load_head(self, checkpoint: Checkpoint, options: BackendOptions) -> OutputHead:
        """Load the final norm and the output head; of a ``ShardedCheckpoint``, the rank's part of the head.

        Raises:
            ModelError: the checkpoint lacks these tensors, or this backend cannot run the family.
        """

    def load_whole(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress | None = None
    ) -> tuple[StageModel, EmbeddingAndHead]:
        """Load all of the checkpoint for one process; the arrays that its two parts exchange may have any form.

        Raises:
            ModelError: the checkpoint lacks tensors, or this backend cannot run the family.
        """

    def load_embedding_and_head(
        self, checkpoint: Checkpoint, options: BackendOptions, *, head_later: bool = False
    ) -> EmbeddingAndHead:
        """Load embedding, final norm and head of the checkpoint and nothing else.

        ``head_later``: load the head when ``logits`` is first called, for a pipeline whose last stage has a head.

        Raises:
            ModelError: the checkpoint lacks these tensors, or this backend cannot run the family.
        """
