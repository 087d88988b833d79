"""The part of a checkpoint's decoder layers and output head that one rank of a tensor-parallel stage computes.

The part is a view of the mapped file: no weight is copied, and only the pages with used rows or columns are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgepp.layer_range import LayerRange
from edgepp.model.tensor_shares import TensorShare
from edgepp.model.weights.checkpoint import Array, Checkpoint


@dataclass(frozen=True)
class ShardedCheckpoint(Checkpoint):
    """A checkpoint whose ``array`` gives the rows or columns of one rank; ``tensors`` tells the whole shapes."""

    share: TensorShare = field(kw_only=True)

    @classmethod
    def of(cls, checkpoint: Checkpoint, share: TensorShare) -> ShardedCheckpoint:
        """The view of ``checkpoint`` for one rank."""
        return cls(checkpoint.path, checkpoint.config, checkpoint.tensors, checkpoint.known, share=share)

    def array(self, name: str) -> Array:
        """The rank's part of the tensor ``name``; a bias of a sum over ranks is whole for rank 0, and zeros for others.

        Raises:
            ModelError: the tensor is not on this disk.
        """
        whole = super().array(name)
        part = self._part(name)
        if part is None:
            return whole
        axis, kept, total = part
        if axis == 0:
            return whole[kept.start : kept.stop]
        if name.endswith(".bias"):
            return whole if self.share.rank == 0 else np.zeros_like(whole)
        stored = whole.shape[-1]
        return whole[..., kept.start * stored // total : kept.stop * stored // total]

    def layer_bytes(self, layers: LayerRange) -> int:
        """Stored bytes of the rank's part of decoder layers ``layers``."""
        return sum(self._part_bytes(name) for name in self.layer_names(layers))

    def _part_bytes(self, name: str) -> int:
        part = self._part(name)
        nbytes = self.tensors[name].nbytes
        return nbytes if part is None else nbytes * len(part[1]) // part[2]

    def _part(self, name: str) -> tuple[int, range, int] | None:
        """Axis on which a tensor is shared, the rank's indices, and the number of all indices; None if not shared."""
        model, share = self.settings, self.share
        match name.split(".")[-2]:
            case "q_proj":
                return 0, share.queries, model.heads * model.head_dim
            case "k_proj" | "v_proj":
                return 0, share.keys, model.kv_heads * model.head_dim
            case "o_proj":
                return 1, share.queries, model.heads * model.head_dim
            case "gate_proj" | "up_proj":
                return 0, share.ffn, model.ffn
            case "down_proj":
                return 1, share.ffn, model.ffn
            case "lm_head" | "embed_tokens":  # the embedding is the head where the two are tied
                return 0, share.vocabulary, model.vocab_size
        return None
