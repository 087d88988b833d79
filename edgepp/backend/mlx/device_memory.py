"""Memory for keys and values on the device that computes."""

from __future__ import annotations

import mlx.core as mx
import psutil

from edgepp.errors import StageFault
from edgepp.layer_range import LayerRange

_MIB = 1 << 20


def free_bytes(device: str) -> int:
    """Free bytes of ``device``; on a card, freed memory that MLX keeps counts as free."""
    if device == "cuda":
        return int(mx.device_info(mx.gpu)["free_memory"]) + int(mx.get_cache_memory())
    return psutil.virtual_memory().available


def check_free(need: int, free: int, what: str, layers: LayerRange) -> None:
    """Check that ``need`` bytes of KV cache for ``what`` fit into ``free`` bytes.

    Raises:
        StageFault: the KV cache does not fit.
    """
    if need > free:
        raise StageFault(
            f"{what} need {need // _MIB} MiB of KV cache in layers {layers}, where {free // _MIB} MiB are free",
            "ask for a shorter answer, or give the stage fewer layers",
        )
