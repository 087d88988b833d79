"""Loading of a part of a checkpoint into mlx-lm's own model object: some decoder layers, or everything else.

mlx-lm loads lazily: the bytes of a tensor are read when it is first evaluated. So the model object is cheap, and only
the tensors of the part are read. Every other parameter becomes NaN without taking memory, so that a mistake gives NaN
and not plausible text from random weights.
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

from edgepp.backend.device import has_gpu
from edgepp.backend.mlx.cut_points import FORWARD_ERRORS, find_layers
from edgepp.backend.mlx.float32_layers import is_half, is_promoted_in_use, widen
from edgepp.backend.mlx.joined_rows import join_rows
from edgepp.backend.mlx.rank_layers import part_of
from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.config.model_config import ModelConfig
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.safetensors_header import wrong_dtype
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint
from edgepp.printable import one_line


def load_part(checkpoint: Checkpoint, layers: LayerRange | None, *, float32: bool) -> Any:
    """The model of ``checkpoint`` with the parameters of ``layers``, or with all others where ``layers`` is None.

    Nothing is evaluated. With ``float32`` every half-precision parameter is cast to float32, except the large matrices,
    which keep their stored dtype and are promoted in products.

    Raises:
        ModelError: mlx-lm does not know the family, or a tensor is absent or has the wrong shape.
    """
    if layers is None:
        checkpoint.require_embedding_and_head()

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        model_class, arguments = _get_classes(config)
        refuse_ignored_settings(checkpoint.settings, frozenset(inspect.signature(arguments).parameters))
        return _partial(model_class, checkpoint, layers, float32), arguments

    try:
        with tempfile.TemporaryDirectory(prefix="edgepp-") as folder:  # so mlx-lm reads no other file of the model
            (Path(folder) / "config.json").write_text(json.dumps(checkpoint.settings.values), encoding="utf-8")
            model, _ = load_model(Path(folder), lazy=True, strict=False, get_model_classes=classes)
    except (*FORWARD_ERRORS, AssertionError, ImportError, ArithmeticError) as error:
        raise ModelError(
            f"mlx-lm cannot build {checkpoint.path.name} (family '{checkpoint.family}'): {one_line(str(error), 200)}",
            "see `edgepp models list` for models that work",
        ) from error
    if has_gpu():
        join_rows(model)
    return widen(model) if float32 else model


def refuse_ignored_settings(model: ModelConfig, read: frozenset[str]) -> None:
    """Refuse settings that mlx-lm would silently ignore; ``read`` are the keys that mlx-lm reads for the family.

    Raises:
        ModelError: a key is ignored; the sentence names the key and the family.
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


def _partial(model_class: Any, checkpoint: Checkpoint, layers: LayerRange | None, float32: bool) -> Any:
    """A subclass of the family's model class that loads the weights of the part from ``checkpoint``."""

    def sanitize(model: Any, _weights: dict[str, Any]) -> dict[str, Any]:
        weights = _lazy_weights(checkpoint)
        return model_class.sanitize(model, weights) if hasattr(model_class, "sanitize") else weights

    def load_weights(model: Any, weights: list[tuple[str, Any]], **_: Any) -> Any:
        chosen = _choose(model, dict(weights), checkpoint, layers, float32)
        return model_class.load_weights(model, chosen, strict=False)

    return type(model_class.__name__, (model_class,), {"sanitize": sanitize, "load_weights": load_weights})


def _lazy_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tensors of the checkpoint, each from the file that the index names; nothing is read yet.

    The tensors of a ``ShardedCheckpoint`` are whole; ``_choose`` takes the rank's parts.
    """
    weights: dict[str, Any] = {}
    for file in {place.file for place in checkpoint.tensors.values()}:
        loaded: Any = mx.load(str(file))
        weights |= {name: array for name, array in loaded.items() if _is_from(checkpoint, name, file)}
    return weights


def _is_from(checkpoint: Checkpoint, name: str, file: Path) -> bool:
    place = checkpoint.tensors.get(name)
    return place is not None and place.file == file


def _choose(
    model: Any, given: Mapping[str, Any], checkpoint: Checkpoint, layers: LayerRange | None, float32: bool
) -> list[tuple[str, Any]]:
    """A value for every parameter of ``model``: the given tensor inside the part, NaN outside."""
    path, _ = find_layers(model, checkpoint.family)
    promoted = is_promoted_in_use(model)
    chosen, absent = [], []
    for name, parameter in tree_flatten(model.parameters()):
        layer = _layer(name, path)
        if (layer is not None) if layers is None else (layer is None or layer not in layers):
            chosen.append((name, _placeholder(parameter)))
        elif name not in given:
            absent.append(name)
        else:
            array = _checked(name, given[name], parameter, checkpoint.path)
            array = part_of(checkpoint, name) if isinstance(checkpoint, ShardedCheckpoint) else array
            cast = float32 and is_half(array) and not promoted(name)
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


def _placeholder(parameter: Any) -> Any:
    """One element broadcast to the shape of the parameter: NaN, or zero for integers."""
    floating = mx.issubdtype(parameter.dtype, mx.floating)
    return mx.broadcast_to(mx.array(float("nan") if floating else 0, parameter.dtype), parameter.shape)


def _checked(name: str, array: Any, parameter: Any, folder: Path) -> Any:
    if array.shape != parameter.shape:
        raise ModelError(f"{name} of {folder.name} has shape {array.shape}; the model needs {parameter.shape}")
    is_float, wants_float = (mx.issubdtype(one.dtype, mx.floating) for one in (array, parameter))
    if is_float != wants_float or (parameter.dtype == mx.uint32 != array.dtype):
        raise wrong_dtype(name, folder, str(array.dtype).rpartition(".")[2])
    return array
