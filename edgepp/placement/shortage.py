"""Why hosts cannot hold a model, in numbers, and what would help: each suggestion has been tried before it is made."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from edgepp.errors import PlanError
from edgepp.layers import LayerRange
from edgepp.placement.search import Search
from edgepp.placement.types import PlacementRequest, StageHost, memory_needed, most_layers

_CONTEXT_STEP = 256
_STORED_BITS = ((8, 8.5), (4, 4.5))
"""Quantisations to suggest, and bits that each weight takes with its share of a scale and a bias."""


def check_pins(want: PlacementRequest, hosts: Sequence[StageHost]) -> None:
    """Check that the pinned ranges lie in the model, do not overlap, and fit their hosts.

    Raises:
        PlanError: the first fault, and whose it is.
    """
    if not hosts:
        raise PlanError(
            "no node offers to hold layers", "start `edgepp join` on a machine, or serve without --no-stage"
        )
    pins = sorted(((h.pinned, str(h), h) for h in hosts if h.pinned is not None), key=lambda pin: pin[:2])
    for layers, name, host in pins:
        if layers.stop > want.size.layers:
            raise PlanError(
                f"{name} is to hold layers {layers}, but the model has only layers {LayerRange(0, want.size.layers)}",
                f"restart it with --layers inside {LayerRange(0, want.size.layers)}, or without",
            )
        if len(layers) > most_layers(want, host):
            needed = memory_needed(want, len(layers), host.coordinator)
            raise PlanError(
                f"layers {layers} do not fit {name}: with {_load(want)} they need {_gb(needed)}, it has"
                f" {_gb(host.memory)}",
                "give it fewer layers, or choose a smaller context or fewer sequences",
            )
    for (one, one_name, _), (other, other_name, _) in pairwise(pins):
        if other.start < one.stop:
            twice = LayerRange(other.start, min(one.stop, other.stop))
            raise PlanError(
                f"layers {twice} are pinned twice: {one_name} is to hold {one}, {other_name} {other}",
                "restart one of the two with other --layers, or without",
            )


def check_gaps(search: Search, hosts: Sequence[StageHost]) -> None:
    """Check that there are enough free hosts for the gaps between pinned ranges.

    Raises:
        PlanError: which layers have nobody, and who holds the others.
    """
    if len(search.free) < len(search.gaps):
        gaps = ", ".join(str(LayerRange(gap.start, gap.stop)) for gap in search.gaps)
        pinned = ", ".join(f"{host} {layers}" for host, layers in search.pinned)
        free = f"only {len(search.free)} of {len(hosts)} nodes are" if search.free else "no node is"
        raise PlanError(
            f"nobody is left for layers {gaps}: pinned are {pinned}, and {free} free to fill in",
            "start another node without --layers, or restart one that has them without",
        )


def shortage(want: PlacementRequest, hosts: Sequence[StageHost], coordinator: str) -> PlanError:
    """The error for hosts that do not hold the model."""
    needed = want.size.layers * (memory_needed(want, 1, False) - memory_needed(want, 0, False))
    message = f"the model does not fit: its {want.size.layers} layers with {_load(want)} need {_gb(needed)}"
    lacking = _lacking_layers(want, hosts, coordinator)
    if lacking is None:
        names = ", ".join(f"{host} has {_gb(host.memory)}" for host in hosts if host.pinned is None)
        message += f", and several parts of it find no room ({names})"
    else:
        missing = memory_needed(want, lacking, False) - memory_needed(want, 0, False)
        message += f", and {_gb(missing)} of memory are missing for {lacking} of them"
    return PlanError(message, _hint(list(_suggestions(want, hosts, coordinator, lacking))))


def _suggestions(
    want: PlacementRequest, hosts: Sequence[StageHost], coordinator: str, lacking: int | None
) -> Iterator[str]:
    context = _largest(want.context // _CONTEXT_STEP, lambda n: _with_context(want, n), hosts, coordinator)
    if context:
        yield f"a context of {context * _CONTEXT_STEP} or less"
    fewer = _largest(want.max_sequences - 1, lambda n: dataclasses.replace(want, max_sequences=n), hosts, coordinator)
    if fewer:
        yield f"{fewer} sequence{'s' if fewer > 1 else ''} instead of {want.max_sequences}"
    for bits, stored in _STORED_BITS:
        smaller = _quantised(want, stored)
        if smaller is not None and fits(smaller, hosts, coordinator):
            yield f"the model in {bits} bits"
            break
    if lacking is not None:
        yield f"one more machine with {_gb(memory_needed(want, lacking, False))} for the model"


def _hint(ways: list[str]) -> str:
    if not ways:
        return "choose a smaller model, or add machines"
    return f"what would help: {', or '.join(ways)}"


def fits(want: PlacementRequest, hosts: Sequence[StageHost], coordinator: str) -> bool:
    """Whether there is a plan for these hosts, whose pinned ranges lie in the model and do not overlap."""
    pins_fit = all(len(h.pinned) <= most_layers(want, h) for h in hosts if h.pinned is not None)
    by_memory = dataclasses.replace(want, policy="memory")  # all policies fit the same; this one is found fastest
    return pins_fit and Search(by_memory, hosts, {}, coordinator).best() is not None


def _largest(top: int, changed: Callable[[int], PlacementRequest], hosts: Sequence[StageHost], coordinator: str) -> int:
    """The largest n up to ``top`` with which it fits; 0 where none does."""
    return bisect_left(range(1, top + 1), True, key=lambda n: not fits(changed(n), hosts, coordinator))


def _lacking_layers(want: PlacementRequest, hosts: Sequence[StageHost], coordinator: str) -> int | None:
    """The least layers that one more machine must take; None where one more is not enough."""

    def helps(layers: int) -> bool:
        memory = memory_needed(want, layers, False)
        extra = StageHost(id="one more", node="one more", memory=memory, stream_bytes_per_s=1.0, flops_per_s=1.0)
        return fits(want, [*hosts, extra], coordinator)

    layers = 1 + bisect_left(range(1, want.size.layers + 1), True, key=helps)
    return layers if layers <= want.size.layers else None


def _with_context(want: PlacementRequest, steps: int) -> PlacementRequest:
    return dataclasses.replace(want, context=steps * _CONTEXT_STEP)


def _quantised(want: PlacementRequest, bits: float) -> PlacementRequest | None:
    """The same model with ``bits`` a stored weight; None where it has hardly more already."""
    weights = want.size.layer_flops / 2
    present = 8 * want.size.layer_bytes / weights if weights else 0.0
    if present < bits + 1:
        return None
    layer_bytes, ends_bytes = int(weights * bits / 8), int(want.size.ends_bytes * bits / present)
    return dataclasses.replace(
        want, size=dataclasses.replace(want.size, layer_bytes=layer_bytes, ends_bytes=ends_bytes)
    )


def _load(want: PlacementRequest) -> str:
    return f"{want.max_sequences} sequence{'s' if want.max_sequences > 1 else ''} of {want.context} positions"


def _gb(size: int) -> str:
    """Rounded up, so that what is said is enough."""
    return f"{math.ceil(size / 1e8) / 10:.1f} GB" if size >= 1e9 else f"{math.ceil(size / 1e6)} MB"
