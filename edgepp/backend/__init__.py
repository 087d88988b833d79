"""Runs a layer range, or a model's two ends. ``choose`` picks the backend; the rest of edgepp sees only ``base``.

A backend's libraries take up to two seconds to import, so only the one that is used is imported.
"""

from __future__ import annotations

from edgepp.backend.base import Backend
from edgepp.backend.device import has_metal
from edgepp.errors import UsageError
from edgepp.model.weights.checkpoint import Checkpoint

NAMES = ("auto", "mlx", "onnx")


def choose(name: str, checkpoint: Checkpoint) -> Backend:
    """The backend called ``name``; ``auto`` takes Metal where there is one, else ONNX Runtime where it fits the model.

    Raises:
        UsageError: there is no such backend.
        ModelError: the backend does not run this family.
    """
    if name not in NAMES:
        raise UsageError(f"there is no backend '{name}'", f"choose one of {', '.join(NAMES)}")
    if name == "mlx" or (name == "auto" and (has_metal() or not _onnx_fits(checkpoint))):
        from edgepp.backend.mlx.backend import MlxBackend

        return MlxBackend()
    from edgepp.backend.onnx.backend import OnnxBackend

    return OnnxBackend()


def _onnx_fits(checkpoint: Checkpoint) -> bool:
    from edgepp.backend.onnx.backend import fits

    return fits(checkpoint)
