"""The MLX backend: any mlx-lm family that fits a layer pipeline, on a GPU (Metal, CUDA) or on a CPU."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, TypeVar

import mlx.core as mx

from edgepp.backend.base import BackendOptions, EmbeddingAndHead, Progress
from edgepp.backend.device import device, has_gpu
from edgepp.backend.loader import OutputHead, Reduction
from edgepp.backend.mlx.arrays import STORED
from edgepp.backend.mlx.cut_points import find_cut_points
from edgepp.backend.mlx.embedding_and_head import MlxEmbeddingAndHead
from edgepp.backend.mlx.one_ahead import OneAheadEnds, OneAheadStage
from edgepp.backend.mlx.rank_head import MlxRankHead
from edgepp.backend.mlx.rank_layers import reduce_halves
from edgepp.backend.mlx.stage import MlxStage
from edgepp.backend.mlx.weights import load_part
from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.shape import refuse_unused_tensors
from edgepp.model.weights.checkpoint import Checkpoint, is_of_head, layer_of
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint
from edgepp.printable import one_line

_GIB = 1 << 30

AnyStage = TypeVar("AnyStage", bound=MlxStage)


class MlxBackend:
    """Loader of stages, or of embedding and head, for MLX.

    Models compute on a GPU in the dtype of the checkpoint unless ``BackendOptions.exact`` is set; on a CPU always in
    float32, since MLX emulates half precision there at a thirtieth of the speed.
    """

    name = "mlx"

    def load_stage(
        self, checkpoint: Checkpoint, layers: LayerRange, options: BackendOptions, progress: Progress | None = None
    ) -> MlxStage:
        """Load decoder layers ``layers`` of the checkpoint and nothing else; ``progress`` is told the bytes loaded.

        Raises:
            ModelError: the checkpoint lacks these tensors, or a layer pipeline cannot run the family.
        """
        return self._stage(MlxStage, checkpoint, layers, options, progress)

    def load_rank(
        self,
        checkpoint: ShardedCheckpoint,
        layers: LayerRange,
        options: BackendOptions,
        reduction: Reduction,
        progress: Progress | None = None,
    ) -> MlxStage:
        """Load one rank's part of decoder layers ``layers``; all ranks load at once, since they try one token together.

        Raises:
            ModelError: the checkpoint lacks these tensors, or this backend cannot run the family.
        """
        return self._stage(MlxStage, checkpoint, layers, options, progress, reduction)

    def load_head(self, checkpoint: Checkpoint, options: BackendOptions) -> OutputHead:
        """Load the final norm and the output head; of a ``ShardedCheckpoint``, the rank's part of the head.

        Raises:
            ModelError: the checkpoint lacks these tensors, or a layer pipeline cannot run the family.
        """
        if not isinstance(checkpoint, ShardedCheckpoint):
            return self.load_embedding_and_head(checkpoint, options)
        checkpoint.require_head()
        _configure_mlx(options)
        names = [name for name in checkpoint.tensors if is_of_head(name, checkpoint.head_module)]
        head = MlxRankHead(checkpoint, _compute_dtype(checkpoint, options, names))
        _evaluate(head.weights, "norm and head", checkpoint)
        _limit_memory()
        return head

    def load_whole(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress | None = None
    ) -> tuple[MlxStage, EmbeddingAndHead]:
        """Load all of the checkpoint for one process; on a GPU it computes one step ahead of the engine.

        Raises:
            ModelError: the checkpoint lacks tensors, or a layer pipeline cannot run the family.
        """
        if has_gpu():
            return self.load_one_ahead(checkpoint, options, progress)
        stage = self.load_stage(checkpoint, LayerRange(0, checkpoint.num_layers), options, progress)
        return stage, self.load_embedding_and_head(checkpoint, options)

    def load_one_ahead(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress | None = None
    ) -> tuple[OneAheadStage, OneAheadEnds]:
        """Load all of the checkpoint for one process that computes one step ahead, on any device.

        Raises:
            ModelError: the checkpoint lacks tensors, or a layer pipeline cannot run the family.
        """
        layers = LayerRange(0, checkpoint.num_layers)
        stage = self._stage(OneAheadStage, checkpoint, layers, options, progress)
        return stage, stage.join(self.load_embedding_and_head(checkpoint, options))

    def _stage(
        self,
        kind: type[AnyStage],
        checkpoint: Checkpoint,
        layers: LayerRange,
        options: BackendOptions,
        progress: Progress | None,
        reduction: Reduction | None = None,
    ) -> AnyStage:
        checkpoint.require(layers)
        refuse_unused_tensors(checkpoint, layers)
        _configure_mlx(options)
        dtype = _compute_dtype(checkpoint, options, checkpoint.layer_names(layers))
        model = load_part(checkpoint, layers, float32=dtype == "float32")
        cut_points = find_cut_points(model, checkpoint.family, checkpoint.num_layers)
        for n in range(layers.start, layers.stop):  # one by one, since a layer may be in memory twice while it is cast
            _evaluate(cut_points.layers[n].parameters(), f"layer {n}", checkpoint)
            if progress is not None:
                progress(checkpoint.layer_bytes(LayerRange(layers.start, n + 1)), checkpoint.layer_bytes(layers))
        if isinstance(checkpoint, ShardedCheckpoint) and reduction is not None:
            reduce_halves(cut_points.layers[layers.start : layers.stop], checkpoint, reduction)
        _limit_memory()
        return kind(model, cut_points, layers, checkpoint, dtype, device(), options.kv_bits)

    def load_embedding_and_head(
        self, checkpoint: Checkpoint, options: BackendOptions, *, head_later: bool = False
    ) -> MlxEmbeddingAndHead:
        """Load embedding, final norm and head of the checkpoint; with ``head_later``, the head only at its first use.

        Raises:
            ModelError: the checkpoint lacks these tensors, or a layer pipeline cannot run the family.
        """
        _configure_mlx(options)
        dtype = _compute_dtype(checkpoint, options, _outside_layers(checkpoint))
        model = load_part(checkpoint, None, float32=dtype == "float32")
        cut_points = find_cut_points(model, checkpoint.family, checkpoint.num_layers)
        if not head_later:
            _evaluate(model.parameters(), "embedding and head", checkpoint)
        _limit_memory()
        return MlxEmbeddingAndHead(model, cut_points, checkpoint, dtype, head_later=head_later)


def _outside_layers(checkpoint: Checkpoint) -> list[str]:
    return [name for name in checkpoint.tensors if layer_of(name) is None]


def _configure_mlx(options: BackendOptions) -> None:
    if not has_gpu():
        mx.set_default_device(mx.cpu)
        mx.disable_compile()  # on Linux, MLX would run a C++ compiler for every fused kernel
    elif options.exact:
        os.environ["MLX_ENABLE_TF32"] = "0"  # read by MLX at the first product: with TF32, CUDA rounds to 10 bits


def _limit_memory() -> None:
    """Limit the freed memory that MLX keeps on a GPU, and its wired memory on Metal; not run on Apple silicon yet.

    Wiring the whole recommended working set starves machines with 16 GB, so the limit is the memory of the loaded
    weights plus 2 GiB for KV caches. A card's memory is not shared with the CPU, but often with other processes.
    """
    match device():
        case "metal":
            recommended = int(mx.device_info().get("max_recommended_working_set_size", 0))
            mx.set_wired_limit(min(recommended, mx.get_active_memory() + 2 * _GIB))
            mx.set_cache_limit(_GIB // 2)
        case "cuda":
            mx.set_cache_limit(2 * _GIB)
    mx.clear_cache()


def _compute_dtype(checkpoint: Checkpoint, options: BackendOptions, names: list[str]) -> str:
    """The dtype to compute in: float32, or on a GPU the dtype of most floating tensors among ``names``."""
    if options.exact or not has_gpu():
        return "float32"
    stored = Counter(STORED[d] for name in names if (d := checkpoint.tensors[name].dtype) in STORED)
    return stored.most_common(1)[0][0] if stored else "float32"


def _evaluate(parameters: Any, what: str, checkpoint: Checkpoint) -> None:
    """Read lazily loaded parameters into memory; ``what`` names them in the error."""
    try:
        mx.eval(parameters)
    except (RuntimeError, MemoryError) as error:
        raise ModelError(f"{what} of {checkpoint.path.name} cannot be loaded: {one_line(str(error), 200)}") from error
