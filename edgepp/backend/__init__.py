"""Runs a layer range, or a model's two ends. ``choose`` picks the backend; the rest of edgepp sees only ``base``."""

from __future__ import annotations

from edgepp.backend.base import Backend
from edgepp.errors import UsageError
from edgepp.model.checkpoint import Checkpoint

NAMES = ("auto", "mlx", "onnx")


def choose(name: str, checkpoint: Checkpoint) -> Backend:
    """The backend called ``name``; ``auto`` takes Metal where there is one, else ONNX Runtime where it fits the model.

    Raises:
        UsageError: there is no such backend.
        ModelError: the backend does not run this family.
    """
    if name not in NAMES:
        raise UsageError(f"there is no backend '{name}'", f"choose one of {', '.join(NAMES)}")
    from edgepp.backend import mlx, onnx  # heavy imports wait until a model is really loaded

    if name == "mlx":
        return mlx.MlxBackend()
    if name == "onnx":
        return onnx.OnnxBackend()
    if mlx.has_metal() or not onnx.fits(checkpoint):
        return mlx.MlxBackend()
    return onnx.OnnxBackend()
