"""Backends, which compute a layer range, or embedding and output head. The rest of edgepp uses the types of ``base``
and ``loader``.

``choose`` imports only the chosen backend, since the libraries of a backend take up to two seconds to import.
"""

from __future__ import annotations

from edgepp.backend.device import has_gpu
from edgepp.backend.loader import Backend
from edgepp.errors import UsageError
from edgepp.model.weights.checkpoint import Checkpoint

NAMES = ("auto", "mlx", "onnx")


def choose(name: str, checkpoint: Checkpoint) -> Backend:
    """The backend called ``name``; ``auto`` means MLX on a GPU, else ONNX Runtime if it can run the model, else MLX.

    Raises:
        UsageError: there is no such backend.
    """
    if name not in NAMES:
        raise UsageError(f"there is no backend '{name}'", f"choose one of {', '.join(NAMES)}")
    if name == "mlx" or (name == "auto" and (has_gpu() or not _onnx_fits(checkpoint))):
        from edgepp.backend.mlx.backend import MlxBackend

        return MlxBackend()
    from edgepp.backend.onnx.backend import OnnxBackend

    return OnnxBackend()


def _onnx_fits(checkpoint: Checkpoint) -> bool:
    from edgepp.backend.onnx.backend import fits

    return fits(checkpoint)
