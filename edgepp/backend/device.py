"""Whether this machine computes on Metal, and the release of a compute thread."""

from __future__ import annotations

import sys


def has_metal() -> bool:
    """Whether MLX computes on the GPU of this machine."""
    import mlx.core as mx

    return bool(mx.metal.is_available())


def release_thread() -> None:
    """Release the MLX streams of this thread; to be called last in every thread that has computed.

    Otherwise the process may abort when it exits after the thread has ended. The thread cannot use MLX afterwards.
    """
    if "mlx.core" in sys.modules:
        import mlx.core as mx

        mx.clear_streams()
