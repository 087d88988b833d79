"""Places of the decoder layers in an mlx-lm model, and whether a pipeline may cut between the layers.

mlx-lm has no interface for running a layer range, but each of its models calls the entries of one list. Taps in place
of entries let edgepp pass hidden states in and out, and leave masks, positions and scalings to the model. That is
correct only for a family whose layers run once, in order, and share nothing but hidden states: ``find_cut_points``
watches forward passes in which taps replace all layers, so that no layer weight is read, and refuses other families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from edgepp.errors import ModelError

FORWARD_ERRORS = (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError)
"""Exceptions of a forward pass whose inputs or parameters the model did not expect."""


class Tap:
    """Replacement of ``layer`` in the layer list: calls go to ``call``, attributes are those of the layer."""

    def __init__(self, layer: Any, call: Callable[..., Any]) -> None:
        self._layer = layer
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __contains__(self, name: str) -> bool:
        return name in self._layer

    def __call__(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of ``call``, which the model takes for the result of the layer."""
        return self._call(hidden, *args, **kwargs)


class PassEnded(Exception):  # noqa: N818 - not an error: it ends a forward pass that has given its result
    """Raised by a tap to skip the rest of the model."""


@dataclass(frozen=True)
class CutPoints:
    """The decoder layers of one model object, between which a pipeline may cut."""

    layers: list[Any] = field(repr=False)
    """The list that the model iterates, not a copy."""
    cache_entries: Mapping[int, int]
    """Index into the model's cache list of each layer that has a cache."""


@dataclass(frozen=True)
class _Visit:
    """One call of a tap: the hidden states it got and returned, and its other arguments."""

    layer: int
    hidden: Any
    returned: Any
    extras: tuple[Any, ...]


def unsupported_family(family: str, reason: str) -> ModelError:
    """The error for a family that no layer pipeline can run."""
    return ModelError(
        f"model family '{family}' does not fit a layer pipeline: {reason}",
        "run the model with mlx-lm on one machine, or choose a model of another family, such as llama or qwen3",
    )


def damaged_weights(modules: Iterable[Any]) -> ModelError | None:
    """The error for ``modules`` with a weight that is not finite; None without such a weight. Reads all weights."""
    for module in modules:
        for name, weight in tree_flatten(module.parameters()):
            if mx.issubdtype(weight.dtype, mx.floating) and not mx.isfinite(weight).all().item():
                return ModelError(
                    f"the weights of the model are damaged: {name} holds numbers that are not finite",
                    "delete its folder and pull the model again",
                )
    return None


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
    raise unsupported_family(family, "its decoder layers are not one list")


def find_cut_points(model: Any, family: str, num_layers: int) -> CutPoints:
    """The cut points of ``model``, found by two forward passes through taps; no weight of a layer is evaluated.

    Parameters outside the layers that are not loaded should be NaN, so that a layer which depends on them is noticed.

    Raises:
        ModelError: no layer pipeline can run the family; the sentence gives the reason.
    """
    layers = find_layers(model, family)[1]
    if len(layers) != num_layers:
        raise unsupported_family(family, f"it runs {len(layers)} layers where its configuration says {num_layers}")
    visits, cache = _watch(model, family, layers, [1, 2])
    other_visits, _ = _watch(model, family, layers, [3, 0])
    _check_order(family, visits, num_layers)
    _check_order(family, other_visits, num_layers)
    _check_chain(family, visits)
    _check_extras(family, visits, other_visits, cache)
    return CutPoints(layers, _cache_entries(family, visits, cache))


def _watch(model: Any, family: str, layers: list[Any], tokens: list[int]) -> tuple[list[_Visit], list[Any]]:
    visits: list[_Visit] = []
    originals = list(layers)

    def spy(index: int) -> Tap:
        def call(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            returned = mx.ones(hidden.shape, hidden.dtype)
            visits.append(_Visit(index, hidden, returned, (*args, *kwargs.values())))
            return returned

        return Tap(originals[index], call)

    cache = make_prompt_cache(model)
    layers[:] = [spy(index) for index in range(len(originals))]
    try:
        model(mx.array([tokens]), cache=cache)
    except FORWARD_ERRORS as error:
        raise unsupported_family(family, f"its layers hand on more than hidden states ({error})") from error
    finally:
        layers[:] = originals
    return visits, cache


def _check_order(family: str, visits: list[_Visit], num_layers: int) -> None:
    order = [visit.layer for visit in visits]
    if order != list(range(num_layers)):
        called = ", ".join(map(str, order)) or "none"
        raise unsupported_family(family, f"its layers do not run once each and in order (called: {called})")


def _check_chain(family: str, visits: list[_Visit]) -> None:
    for before, after in pairwise(visits):
        if after.hidden is not before.returned:
            raise unsupported_family(
                family, f"it changes the hidden states between layers {before.layer} and {after.layer}"
            )


def _check_extras(family: str, visits: list[_Visit], other_visits: list[_Visit], cache: list[Any]) -> None:
    """Check that arguments of a layer besides hidden states and cache depend on positions only, not on tokens."""
    known = {id(entry) for entry in cache}
    for visit, other in zip(visits, other_visits, strict=True):
        mine = list(_arrays(family, (e for e in visit.extras if id(e) not in known)))
        theirs = [e for e in other.extras if isinstance(e, mx.array)]
        if len(mine) != len(theirs) or not all(map(_same, mine, theirs)):
            raise unsupported_family(family, f"layer {visit.layer} needs more than the hidden states of the tokens")


def _arrays(family: str, extras: Iterator[Any]) -> Iterator[Any]:
    for extra in extras:
        if isinstance(extra, mx.array):
            yield extra
        elif extra is not None and not isinstance(extra, str | bool | int | float):
            raise unsupported_family(family, f"its layers share a {type(extra).__name__}")


def _same(a: Any, b: Any) -> bool:
    # false for NaN, the value of parameters that are not loaded
    return np.array_equal(np.asarray(a.astype(mx.float32)), np.asarray(b.astype(mx.float32)))


def _cache_entries(family: str, visits: list[_Visit], cache: list[Any]) -> dict[int, int]:
    index = {id(entry): n for n, entry in enumerate(cache)}
    used: dict[int, int] = {}
    for visit in visits:
        mine = {index[id(extra)] for extra in visit.extras if id(extra) in index}
        if len(mine) > 1 or mine & set(used.values()):
            raise unsupported_family(family, f"layer {visit.layer} shares a KV cache with another layer")
        used.update((visit.layer, entry) for entry in mine)
    return used
