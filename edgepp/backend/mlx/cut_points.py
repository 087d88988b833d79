"""Where an mlx-lm model keeps its decoder layers, and whether a pipeline may cut between them.

mlx-lm has no interface for running a layer range, but every model of it calls the entries of one list. Taps
in place of entries let edgepp hand hidden states in and out and leave masks, positions and scalings to the
model. That is only right for a family whose layers run once, in order, and share nothing but hidden states:
``find_cut_points`` watches forward passes of taps alone, which read no layer's weights, and refuses the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from edgepp.errors import ModelError

FORWARD_ERRORS = (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError)
"""What a forward pass raises when a model gets something else than it expects."""


class Tap:
    """Stands in the layer list where ``layer`` stood; what the model reads of it is still that layer's."""

    def __init__(self, layer: Any, call: Callable[..., Any]) -> None:
        self._layer = layer
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __contains__(self, name: str) -> bool:
        return name in self._layer

    def __call__(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        """What the layer would return."""
        return self._call(hidden, *args, **kwargs)


class PassEnded(Exception):  # noqa: N818 - not an error: it ends a forward pass that has given what was wanted
    """Raised by a tap to skip the rest of the model."""


@dataclass(frozen=True)
class Anatomy:
    """The decoder layers of one model object."""

    layers: list[Any] = field(repr=False)
    """The very list that the model iterates."""
    entries: Mapping[int, int]
    """Which entry of the model's cache list each layer uses; a layer without a cache is not in it."""


@dataclass(frozen=True)
class _Visit:
    """One call of a tapped layer."""

    layer: int
    hidden: Any
    returned: Any
    extras: tuple[Any, ...]


def unfit(family: str, reason: str) -> ModelError:
    """The error for a family that no layer pipeline can run."""
    return ModelError(
        f"model family '{family}' does not fit a layer pipeline: {reason}",
        "run it whole with mlx-lm, or choose a model of another family, such as llama, qwen3 or gemma2",
    )


def find_layers(model: Any, family: str) -> tuple[str, list[Any]]:
    """The dotted name and the list of the decoder layers that ``model`` iterates.

    ``model.layers`` may be a copy, so the list is found by identity of its first layer.

    Raises:
        ModelError: the model has no such list.
    """
    listed = getattr(model, "layers", None)
    if listed:
        for path, module in model.named_modules():
            for name, value in module.items():
                if isinstance(value, list) and any(item is listed[0] for item in value):
                    return f"{path}.{name}".lstrip("."), value
    raise unfit(family, "its decoder layers are not one list")


def find_cut_points(model: Any, family: str, num_layers: int) -> Anatomy:
    """Learn by two tapped forward passes how ``model`` uses its layers; no layer weight is evaluated.

    Parameters outside the layers should be NaN where they are not loaded: a layer's dependence on them shows.

    Raises:
        ModelError: the family does not fit, and why.
    """
    layers = find_layers(model, family)[1]
    if len(layers) != num_layers:
        raise unfit(family, f"it runs {len(layers)} layers where its configuration says {num_layers}")
    visits, cache = _watch(model, family, layers, [1, 2])
    others, _ = _watch(model, family, layers, [3, 0])
    _check_order(family, visits, num_layers)
    _check_order(family, others, num_layers)
    _check_chain(family, visits)
    _check_extras(family, visits, others, cache)
    return Anatomy(layers, _entries(family, visits, cache))


def _watch(model: Any, family: str, layers: list[Any], tokens: list[int]) -> tuple[list[_Visit], list[Any]]:
    visits: list[_Visit] = []
    kept = list(layers)

    def spy(index: int) -> Tap:
        def call(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            returned = mx.ones(hidden.shape, hidden.dtype)
            visits.append(_Visit(index, hidden, returned, (*args, *kwargs.values())))
            return returned

        return Tap(kept[index], call)

    cache = make_prompt_cache(model)
    layers[:] = [spy(index) for index in range(len(kept))]
    try:
        model(mx.array([tokens]), cache=cache)
    except FORWARD_ERRORS as error:
        raise unfit(family, f"its layers hand on more than hidden states ({error})") from error
    finally:
        layers[:] = kept
    return visits, cache


def _check_order(family: str, visits: list[_Visit], num_layers: int) -> None:
    order = [visit.layer for visit in visits]
    if order != list(range(num_layers)):
        named = ", ".join(map(str, order)) or "none"
        raise unfit(family, f"its layers do not run once each and in order (called: {named})")


def _check_chain(family: str, visits: list[_Visit]) -> None:
    for before, after in pairwise(visits):
        if after.hidden is not before.returned:
            raise unfit(family, f"it changes the hidden states between layers {before.layer} and {after.layer}")


def _check_extras(family: str, visits: list[_Visit], others: list[_Visit], cache: list[Any]) -> None:
    """What a layer gets beside hidden states and cache must come from positions alone, never from tokens."""
    known = {id(entry) for entry in cache}
    for visit, other in zip(visits, others, strict=True):
        mine = list(_arrays(family, (e for e in visit.extras if id(e) not in known)))
        theirs = [e for e in other.extras if isinstance(e, mx.array)]
        if len(mine) != len(theirs) or not all(map(_same, mine, theirs)):
            raise unfit(family, f"layer {visit.layer} needs more of the tokens than their hidden states")


def _arrays(family: str, extras: Iterator[Any]) -> Iterator[Any]:
    for extra in extras:
        if isinstance(extra, mx.array):
            yield extra
        elif extra is not None and not isinstance(extra, str | bool | int | float):
            raise unfit(family, f"its layers share a {type(extra).__name__}")


def _same(a: Any, b: Any) -> bool:
    # NaN, the mark of a parameter that is not loaded, is equal to nothing
    return np.array_equal(np.asarray(a.astype(mx.float32)), np.asarray(b.astype(mx.float32)))


def _entries(family: str, visits: list[_Visit], cache: list[Any]) -> dict[int, int]:
    index = {id(entry): n for n, entry in enumerate(cache)}
    used: dict[int, int] = {}
    for visit in visits:
        mine = {index[id(extra)] for extra in visit.extras if id(extra) in index}
        if len(mine) > 1 or mine & set(used.values()):
            raise unfit(family, f"layer {visit.layer} shares a KV cache with another layer")
        used.update((visit.layer, entry) for entry in mine)
    return used
