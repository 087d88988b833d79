"""The MLX backend: any mlx-lm family that fits a layer pipeline, on Metal or on a CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx

from edgepp.backend.base import BackendOptions, Progress
from edgepp.backend.device import has_metal
from edgepp.backend.mlx.arrays import STORED
from edgepp.backend.mlx.cut_points import find_cut_points
from edgepp.backend.mlx.embedding_and_head import MlxEmbeddingAndHead
from edgepp.backend.mlx.stage import MlxStage
from edgepp.backend.mlx.weights import load_part
from edgepp.errors import ModelError
from edgepp.layers import LayerRange
from edgepp.model.shape import refuse_unused_tensors
from edgepp.model.weights.checkpoint import Checkpoint, layer_of
from edgepp.printable import one_line

_GIB = 1 << 30


class MlxBackend:
    """Loads stages, or embedding and head, for MLX.

    On Metal they compute in the dtype of the checkpoint unless ``BackendOptions.exact`` is set; on a CPU always in
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
        checkpoint.require(layers)
        refuse_unused_tensors(checkpoint, layers)
        _configure_mlx()
        dtype = _compute_dtype(checkpoint, options, checkpoint.layer_names(layers))
        model = load_part(checkpoint, layers, float32=dtype == "float32")
        cut_points = find_cut_points(model, checkpoint.family, checkpoint.num_layers)
        for n in range(layers.start, layers.stop):  # one by one, since a layer may be in memory twice while it is cast
            _evaluate(cut_points.layers[n].parameters(), f"layer {n}", checkpoint)
            if progress is not None:
                progress(checkpoint.layer_bytes(LayerRange(layers.start, n + 1)), checkpoint.layer_bytes(layers))
        _limit_metal_memory()
        return MlxStage(model, cut_points, layers, checkpoint, dtype, _device(), options.kv_bits)

    def load_embedding_and_head(self, checkpoint: Checkpoint, options: BackendOptions) -> MlxEmbeddingAndHead:
        """Load embedding, final norm and head of the checkpoint and nothing else.

        Raises:
            ModelError: the checkpoint lacks these tensors, or a layer pipeline cannot run the family.
        """
        _configure_mlx()
        dtype = _compute_dtype(checkpoint, options, [name for name in checkpoint.tensors if layer_of(name) is None])
        model = load_part(checkpoint, None, float32=dtype == "float32")
        cut_points = find_cut_points(model, checkpoint.family, checkpoint.num_layers)
        _evaluate(model.parameters(), "embedding and head", checkpoint)
        _limit_metal_memory()
        return MlxEmbeddingAndHead(model, cut_points, checkpoint, dtype)


def _device() -> str:
    return "metal" if has_metal() else "cpu"


def _configure_mlx() -> None:
    if not has_metal():
        mx.set_default_device(mx.cpu)
        mx.disable_compile()  # on Linux, MLX would run a C++ compiler for every fused kernel


def _limit_metal_memory() -> None:
    """Limit MLX's wired and cached memory on Metal; this has not been run on Apple silicon yet.

    Wiring the whole recommended working set starves machines with 16 GB, so the limit is the memory of the loaded
    weights plus 2 GiB for KV caches.
    """
    if has_metal():
        recommended = int(mx.device_info().get("max_recommended_working_set_size", 0))
        mx.set_wired_limit(min(recommended, mx.get_active_memory() + 2 * _GIB))
        mx.set_cache_limit(_GIB // 2)
    mx.clear_cache()


def _compute_dtype(checkpoint: Checkpoint, options: BackendOptions, names: list[str]) -> str:
    """The dtype to compute in: float32, or on Metal that of most floating tensors among ``names``."""
    if options.exact or not has_metal():
        return "float32"
    stored = Counter(STORED[d] for name in names if (d := checkpoint.tensors[name].dtype) in STORED)
    return stored.most_common(1)[0][0] if stored else "float32"


def _evaluate(parameters: Any, what: str, checkpoint: Checkpoint) -> None:
    """Read lazily loaded parameters into memory; ``what`` names them in the error."""
    try:
        mx.eval(parameters)
    except (RuntimeError, MemoryError) as error:
        raise ModelError(f"{what} of {checkpoint.path.name} cannot be loaded: {one_line(str(error), 200)}") from error
