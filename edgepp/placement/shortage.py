"""Errors for hosts that cannot hold a model, in numbers. Every suggestion in a hint was tried by a search."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.placement.costs import max_layers, memory_needed
from edgepp.placement.search import Search
from edgepp.placement.values import PlacementRequest, StageHost

_CONTEXT_STEP = 256
_STORED_BITS = ((8, 8.5), (4, 4.5))
"""Quantisations to suggest: bits, and bits per weight with the share of a scale and a bias."""


def check_pins(request: PlacementRequest, hosts: Sequence[StageHost]) -> None:
    """Check that the pinned ranges lie in the model, do not overlap, and fit their hosts.

    Raises:
        PlanError: the first fault, with the name of the host.
    """
    if not hosts:
        raise PlanError(
            "no node offers to hold layers", "run `edgepp join` on a machine, or `edgepp serve` without --no-stage"
        )
    whole = LayerRange(0, request.size.layers)
    pins = sorted(((h.pinned, str(h), h) for h in hosts if h.pinned is not None), key=lambda pin: pin[:2])
    for layers, name, host in pins:
        if layers.stop > request.size.layers:
            raise PlanError(
                f"{name} is pinned to layers {layers}, but the model has only layers {whole}",
                f"pin {name} inside {whole} (`edgepp join --layers`), or not at all",
            )
        if len(layers) > max_layers(request, host):
            needed = memory_needed(request, len(layers), host.coordinator)
            raise PlanError(
                f"layers {layers} do not fit {name}: with {_load(request)} they need {_gb(needed)}, and {name} has"
                f" {_gb(host.memory_bytes)}",
                f"pin {name} to fewer layers (`edgepp join --layers`), or take a smaller --context or --max-sequences",
            )
    for (one, one_name, _), (other, other_name, _) in pairwise(pins):
        if other.start < one.stop:
            twice = LayerRange(other.start, min(one.stop, other.stop))
            raise PlanError(
                f"layers {twice} are pinned twice: to {one_name} ({one}) and to {other_name} ({other})",
                "pin one of the two to other layers (`edgepp join --layers`), or not at all",
            )


def check_gaps(search: Search, hosts: Sequence[StageHost]) -> None:
    """Check that there are enough free hosts for the gaps between pinned ranges.

    Raises:
        PlanError: there are not; the message names the layers without a host, and the hosts of the others.
    """
    if len(search.free) < len(search.gaps):
        gaps = ", ".join(str(LayerRange(gap.start, gap.stop)) for gap in search.gaps)
        pinned = ", ".join(f"{host} {layers}" for host, layers in search.pinned)
        free = f"only {len(search.free)} of {len(hosts)} nodes are" if search.free else "no node is"
        raise PlanError(
            f"no node is left for layers {gaps}: pinned are {pinned}, and {free} free",
            "add a node that is not pinned, or have one join without --layers",
        )


def shortage(request: PlacementRequest, hosts: Sequence[StageHost], coordinator: str) -> PlanError:
    """The error for hosts that do not hold the model."""
    needed = request.size.layers * (memory_needed(request, 1, False) - memory_needed(request, 0, False))
    message = f"the model does not fit: its {request.size.layers} layers with {_load(request)} need {_gb(needed)}"
    lacking = _lacking_layers(request, hosts, coordinator)
    if lacking is None:
        names = ", ".join(f"{host} has {_gb(host.memory_bytes)}" for host in hosts if host.pinned is None)
        message += f", and one more machine would not be enough ({names})"
    else:
        missing = memory_needed(request, lacking, False) - memory_needed(request, 0, False)
        message += f", and {_gb(missing)} of memory are missing for {lacking} of them"
    return PlanError(message, _hint(list(_suggestions(request, hosts, coordinator, lacking))))


def _suggestions(
    request: PlacementRequest, hosts: Sequence[StageHost], coordinator: str, lacking: int | None
) -> Iterator[str]:
    context = _largest(request.context // _CONTEXT_STEP, lambda n: _with_context(request, n), hosts, coordinator)
    if context * _CONTEXT_STEP >= request.least_context:
        yield f"a context of {context * _CONTEXT_STEP} or less"
    fewer = _largest(
        request.max_sequences - 1, lambda n: dataclasses.replace(request, max_sequences=n), hosts, coordinator
    )
    if fewer:
        yield f"{fewer} sequence{'s' if fewer > 1 else ''} instead of {request.max_sequences}"
    for bits, stored in _STORED_BITS:
        smaller = _quantised(request, stored)
        if smaller is not None and fits(smaller, hosts, coordinator):
            yield f"the model in {bits} bits"
            break
    if lacking is not None:
        yield f"one more machine with {_gb(memory_needed(request, lacking, False))} for the model"


def _hint(suggestions: list[str]) -> str:
    if not suggestions:
        return "choose a smaller model, or add machines"
    return f"what would help: {', or '.join(suggestions)}"


def fits(request: PlacementRequest, hosts: Sequence[StageHost], coordinator: str) -> bool:
    """Whether a plan exists; the pinned ranges of ``hosts`` must lie in the model and not overlap."""
    pins_fit = all(len(h.pinned) <= max_layers(request, h) for h in hosts if h.pinned is not None)
    # A plan exists for all policies or for none, and a search by memory is the fastest.
    by_memory = dataclasses.replace(request, policy="memory")
    return pins_fit and Search(by_memory, hosts, {}, coordinator).best() is not None


def _largest(top: int, changed: Callable[[int], PlacementRequest], hosts: Sequence[StageHost], coordinator: str) -> int:
    """Greatest n up to ``top`` for which the request ``changed(n)`` fits; 0 if none does."""
    return bisect_left(range(1, top + 1), True, key=lambda n: not fits(changed(n), hosts, coordinator))


def _lacking_layers(request: PlacementRequest, hosts: Sequence[StageHost], coordinator: str) -> int | None:
    """Least number of layers that one more machine must take; None if one more machine is not enough."""

    def helps(layers: int) -> bool:
        memory_bytes = memory_needed(request, layers, False)
        extra = StageHost(
            id="one more", node="one more", memory_bytes=memory_bytes, stream_bytes_per_s=1.0, flops_per_s=1.0
        )
        return fits(request, [*hosts, extra], coordinator)

    layers = 1 + bisect_left(range(1, request.size.layers + 1), True, key=helps)
    return layers if layers <= request.size.layers else None


def _with_context(request: PlacementRequest, steps: int) -> PlacementRequest:
    return dataclasses.replace(request, context=steps * _CONTEXT_STEP)


def _quantised(request: PlacementRequest, bits: float) -> PlacementRequest | None:
    """The request with ``bits`` per stored weight; None if the model has less than ``bits`` + 1."""
    weights = request.size.layer_flops / 2
    present = 8 * request.size.layer_bytes / weights if weights else 0.0
    if present < bits + 1:
        return None
    layer_bytes, ends_bytes = int(weights * bits / 8), int(request.size.ends_bytes * bits / present)
    return dataclasses.replace(
        request, size=dataclasses.replace(request.size, layer_bytes=layer_bytes, ends_bytes=ends_bytes)
    )


def _load(request: PlacementRequest) -> str:
    return f"{request.max_sequences} sequence{'s' if request.max_sequences > 1 else ''} of {request.context} positions"


def _gb(size: int) -> str:
    """A size, rounded up so that the printed size is enough."""
    return f"{math.ceil(size / 1e8) / 10:.1f} GB" if size >= 1e9 else f"{math.ceil(size / 1e6)} MB"
