"""What this machine computes on, and what its libraries ask of threads."""

from __future__ import annotations

import sys


def has_metal() -> bool:
    """Whether MLX computes on this machine's GPU."""
    import mlx.core as mx

    return bool(mx.metal.is_available())


def release_thread() -> None:
    """The last thing that a thread calls after it has computed.

    A process that exits after such a thread has ended aborts now and then, unless MLX's streams of the thread were
    released in it; it cannot use MLX again.
    """
    if "mlx.core" in sys.modules:
        import mlx.core as mx

        mx.clear_streams()
