"""Loads a part of a checkpoint into mlx-lm's own model object: some decoder layers, or all but them.

mlx-lm loads lazily: a tensor's bytes are read when it is first evaluated. So the whole object costs next to
nothing and only the tensors of the part are ever read. Every other parameter becomes NaN without memory: a
mistake shows as NaN, never as plausible text from random weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_model

from edgepp.backend.mlx_float import is_half, stays_stored, widen
from edgepp.backend.mlx_taps import FORWARD_ERRORS, find_layers
from edgepp.errors import ModelError
from edgepp.layers import LayerRange
from edgepp.model.checkpoint import Checkpoint, layer_of, read_header


def load_part(checkpoint: Checkpoint, layers: LayerRange | None, *, wide: bool) -> Any:
    """The model of ``checkpoint`` with the parameters of ``layers``, or of all but layers where that is None.

    Nothing is evaluated. With ``wide`` every half-precision parameter is cast to float32, but for the big
    matrices, which keep their stored dtype and promote in use.

    Raises:
        ModelError: mlx-lm does not know the family, or a tensor is absent or has the wrong shape.
    """
    if layers is None:
        _require_ends(checkpoint)

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        model_class, arguments = _get_classes(config)
        return _partial(model_class, checkpoint, layers, wide), arguments

    try:
        model, _ = load_model(checkpoint.path, lazy=True, strict=False, get_model_classes=classes)
    except (*FORWARD_ERRORS, AssertionError, ImportError) as error:
        raise ModelError(
            f"mlx-lm cannot build {checkpoint.path.name} (family '{checkpoint.family}'): {error}",
            "see `edgepp models list` for models that work",
        ) from error
    return widen(model) if wide else model


def _partial(model_class: Any, checkpoint: Checkpoint, layers: LayerRange | None, wide: bool) -> Any:
    """The family's class, but that it sees and takes only the tensors of the part."""

    def sanitize(model: Any, weights: dict[str, Any]) -> dict[str, Any]:
        held = {name: array for name, array in weights.items() if name in checkpoint.tensors}
        return model_class.sanitize(model, held) if hasattr(model_class, "sanitize") else held

    def load_weights(model: Any, weights: list[tuple[str, Any]], **_: Any) -> Any:
        chosen = _choose(model, dict(weights), checkpoint, layers, wide)
        return model_class.load_weights(model, chosen, strict=False)

    return type(model_class.__name__, (model_class,), {"sanitize": sanitize, "load_weights": load_weights})


def _choose(
    model: Any, given: Mapping[str, Any], checkpoint: Checkpoint, layers: LayerRange | None, wide: bool
) -> list[tuple[str, Any]]:
    """A value for every parameter of ``model``: the given one inside the part, NaN outside."""
    path, _ = find_layers(model, checkpoint.family)
    stored = stays_stored(model)
    chosen, absent = [], []
    for name, parameter in tree_flatten(model.parameters()):
        layer = _layer(name, path)
        if (layer is not None) if layers is None else (layer is None or layer not in layers):
            chosen.append((name, _nothing(parameter)))
        elif name not in given:
            absent.append(name)
        else:
            array = _checked(name, given[name], parameter, checkpoint.path)
            cast = wide and is_half(array) and not stored(name)
            chosen.append((name, array.astype(mx.float32) if cast else array))
    if absent:
        raise ModelError(
            f"{checkpoint.path} lacks {len(absent)} tensors of the part to load, among them {absent[0]}",
            "fetch them with `edgepp models pull`",
        )
    return chosen


def _layer(name: str, path: str) -> int | None:
    """The decoder layer of parameter ``name``, where ``path`` names the list of layers."""
    if not name.startswith(f"{path}."):
        return None
    return int(name[len(path) + 1 :].split(".", 1)[0])


def _nothing(parameter: Any) -> Any:
    """One element shown in the parameter's shape: NaN, or zero for integers."""
    floating = mx.issubdtype(parameter.dtype, mx.floating)
    return mx.broadcast_to(mx.array(float("nan") if floating else 0, parameter.dtype), parameter.shape)


def _checked(name: str, array: Any, parameter: Any, folder: Path) -> Any:
    if array.shape != parameter.shape:
        raise ModelError(f"{name} of {folder.name} has shape {array.shape}; the model needs {parameter.shape}")
    return array


def _require_ends(checkpoint: Checkpoint) -> None:
    """Some families tie the head to the embedding where the head is absent: that must not be by accident."""
    if checkpoint.text_config.get("tie_word_embeddings"):
        return
    index = checkpoint.path / "model.safetensors.index.json"
    known = set(json.loads(index.read_bytes()).get("weight_map", ())) if index.is_file() else set()
    for file in checkpoint.path.glob("*.safetensors"):
        known.update(place.name for place in read_header(file, whole=True))
    absent = sorted(name for name in known if layer_of(name) is None and name not in checkpoint.tensors)
    if absent:
        raise ModelError(
            f"{checkpoint.path} lacks {len(absent)} tensors outside the layers, among them {absent[0]}",
            "fetch them with `edgepp models pull`",
        )
