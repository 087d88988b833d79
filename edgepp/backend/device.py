"""The device that MLX computes on here, and the release of a compute thread."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

GPUS = ("metal", "cuda")
"""Names of the devices that are GPUs; the other device is ``cpu``."""


def device() -> str:
    """The device that MLX computes on here: ``metal``, ``cuda`` or ``cpu``."""
    import mlx.core as mx

    if mx.metal.is_available():
        return "metal"
    # MLX's build for CUDA says that CUDA is available where there is no card, too
    return "cuda" if mx.cuda.is_available() and mx.device_count(mx.gpu) else "cpu"


def has_gpu() -> bool:
    """Whether MLX computes on a GPU here."""
    return device() in GPUS


def cuda_package() -> str | None:
    """Name of the package with MLX's build for CUDA; None where none is installed. Does not import MLX."""
    for package in ("mlx-cuda-13", "mlx-cuda-12"):
        with suppress(PackageNotFoundError):
            version(package)
            return package
    return None


def release_thread() -> None:
    """Release the MLX streams of this thread; to be called last in every thread that has computed.

    Otherwise the process may abort when it exits after the thread has ended. The thread cannot use MLX afterwards.
    """
    if "mlx.core" in sys.modules:
        import mlx.core as mx

        mx.clear_streams()
