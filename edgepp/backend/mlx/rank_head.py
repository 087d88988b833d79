"""Final norm and one rank's part of the output head of a plain mlx-lm model, computed as the whole model does."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from edgepp.backend.mlx.arrays import DTYPES, from_numpy
from edgepp.backend.mlx.cut_points import FORWARD_ERRORS
from edgepp.backend.mlx.float32_layers import is_half, product
from edgepp.backend.mlx.rank_layers import part_of
from edgepp.errors import StageFault
from edgepp.model.weights.checkpoint import Array
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint


class MlxRankHead:
    """Final norm, and the rank's rows of the head's matrix; implements ``OutputHead``."""

    def __init__(self, checkpoint: ShardedCheckpoint, dtype: str) -> None:
        """Read the rank's rows; the head computes in ``dtype``.

        Raises:
            ModelError: a tensor is not on this disk, or the quantisation is not in the configuration.
        """
        model = checkpoint.settings
        module = checkpoint.head_module
        self._dtype, self._epsilon, self._hidden_size = dtype, model.epsilon, model.hidden_size
        self._quantisation = checkpoint.quantisation(module)
        parts = ("weight",) if self._quantisation is None else ("weight", "scales", "biases")
        self._norm = part_of(checkpoint, "model.norm.weight").astype(DTYPES[dtype])
        self._weight, *scales = (part_of(checkpoint, f"{module}.{part}") for part in parts)
        self._scales = [one.astype(mx.float32) if dtype == "float32" else one for one in scales]

    @property
    def weights(self) -> list[Any]:
        """All weights, on the device."""
        return [self._norm, self._weight, *self._scales]

    def logits(self, hidden: Array) -> Array:
        """Float32 logits (T, R) of the rank's R token ids, from the hidden states (T, D) of the last layer.

        Raises:
            StageFault: the hidden states do not fit the model, or memory ran out.
        """
        if hidden.ndim != 2 or hidden.shape[1] != self._hidden_size:
            raise StageFault(f"hidden states of shape {hidden.shape} are not (T, {self._hidden_size})")
        try:
            normed = mx.fast.rms_norm(from_numpy(hidden, self._dtype), self._norm, self._epsilon)
            return np.asarray(self._linear(normed).astype(mx.float32)[0])
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise StageFault(f"the output head failed: {error}") from error

    def _linear(self, hidden: Any) -> Any:
        if self._quantisation is not None:
            bits, group_size = self._quantisation.bits, self._quantisation.group_size
            scales, biases = self._scales
            return mx.quantized_matmul(
                hidden, self._weight, scales, biases, transpose=True, group_size=group_size, bits=bits
            )
        if self._dtype == "float32" and is_half(self._weight):
            return product(hidden, self._weight)
        return hidden @ self._weight.T
