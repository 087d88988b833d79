"""Loads a part of a checkpoint into mlx-lm's own model object: some decoder layers, or all but them.

mlx-lm loads lazily: a tensor's bytes are read when it is first evaluated. So the whole object costs next to
nothing and only the tensors of the part are ever read. Every other parameter becomes NaN without memory: a
mistake shows as NaN, never as plausible text from random weights.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_model

from edgepp.backend.mlx.cut_points import FORWARD_ERRORS, find_layers
from edgepp.backend.mlx.float32_layers import is_half, stays_stored, widen
from edgepp.errors import ModelError
from edgepp.layers import LayerRange
from edgepp.model.config.model_config import ModelConfig
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.printable import one_line


def load_part(checkpoint: Checkpoint, layers: LayerRange | None, *, wide: bool) -> Any:
    """The model of ``checkpoint`` with the parameters of ``layers``, or of all but layers where that is None.

    Nothing is evaluated. With ``wide`` every half-precision parameter is cast to float32, but for the big
    matrices, which keep their stored dtype and promote in use.

    Raises:
        ModelError: mlx-lm does not know the family, or a tensor is absent or has the wrong shape.
    """
    if layers is None:
        checkpoint.require_embedding_and_head()

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        model_class, arguments = _get_classes(config)
        check_honoured(checkpoint.settings, frozenset(inspect.signature(arguments).parameters))
        return _partial(model_class, checkpoint, layers, wide), arguments

    try:
        with tempfile.TemporaryDirectory(prefix="edgepp-") as folder:  # so mlx-lm sees no other file of the model's
            (Path(folder) / "config.json").write_text(json.dumps(checkpoint.settings.values), encoding="utf-8")
            model, _ = load_model(Path(folder), lazy=True, strict=False, get_model_classes=classes)
    except (*FORWARD_ERRORS, AssertionError, ImportError, ArithmeticError) as error:
        raise ModelError(
            f"mlx-lm cannot build {checkpoint.path.name} (family '{checkpoint.family}'): {one_line(str(error), 200)}",
            "see `edgepp models list` for models that work",
        ) from error
    return widen(model) if wide else model


def check_honoured(model: ModelConfig, read: frozenset[str]) -> None:
    """Refuse settings that mlx-lm would drop in silence, ``read`` being the keys that it reads for the family.

    Raises:
        ModelError: names the family and the key.
    """
    values, ignored = model.values, ""
    if "text_config" in read:
        return  # the language model inside has keys of its own
    several = [part for part in (values.get("rope_parameters") or {}).values() if isinstance(part, dict)]
    if model.family == "qwen2" and model.head_dim * model.heads != model.hidden_size:
        ignored = "head_dim"
    elif values.get("rope_scaling") and not read & {"rope_scaling", "rope_parameters"}:
        ignored = "rope_scaling"
    elif any(part != several[0] for part in several) and not read & {"rope_parameters", "rope_local_base_freq"}:
        ignored = "rope_parameters"
    elif values.get("partial_rotary_factor") not in (None, 1) and not any("rotary" in key for key in read):
        ignored = "" if "rope_parameters" in read else "partial_rotary_factor"
    if ignored:
        raise ModelError(
            f"mlx-lm does not read {ignored} of {model.name} (family '{model.family}'), so its answers would be wrong",
            "choose another model, or convert this one with a newer mlx-lm",
        )


def _partial(model_class: Any, checkpoint: Checkpoint, layers: LayerRange | None, wide: bool) -> Any:
    """The family's class, but that it takes its weights from ``checkpoint``, and only those of the part."""

    def sanitize(model: Any, _weights: dict[str, Any]) -> dict[str, Any]:
        held = _lazy_weights(checkpoint)
        return model_class.sanitize(model, held) if hasattr(model_class, "sanitize") else held

    def load_weights(model: Any, weights: list[tuple[str, Any]], **_: Any) -> Any:
        chosen = _choose(model, dict(weights), checkpoint, layers, wide)
        return model_class.load_weights(model, chosen, strict=False)

    return type(model_class.__name__, (model_class,), {"sanitize": sanitize, "load_weights": load_weights})


def _lazy_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's tensors, each from the file that the index gives it; nothing is read yet."""
    weights: dict[str, Any] = {}
    for file in {place.file for place in checkpoint.tensors.values()}:
        loaded: Any = mx.load(str(file))
        weights |= {name: array for name, array in loaded.items() if _is_from(checkpoint, name, file)}
    return weights


def _is_from(checkpoint: Checkpoint, name: str, file: Path) -> bool:
    place = checkpoint.tensors.get(name)
    return place is not None and place.file == file


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
