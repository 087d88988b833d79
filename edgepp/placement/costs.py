"""Costs of a plan: bytes of memory of its stages, and seconds of its steps. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from edgepp.layer_range import LayerRange
from edgepp.placement.values import Links, ModelSize, PlacementRequest, Plan, StageHost, link_between

_WORKING_BYTES = 64_000_000
_WORKING_ROWS = 128 * 32
"""Rows of working space: a prefill chunk of 128 tokens, with 32 activations of a hidden state's width per token."""


def memory_needed(request: PlacementRequest, layers: int, ends: bool) -> int:
    """Bytes that a stage of ``layers`` layers takes; ``ends`` adds embedding and head.

    Weights count 1.25 times their stored bytes, because backends add float32 scales and packing (ONNX Runtime measured
    1.2 to 1.4 on 4-bit layers). KV caches count in full; a constant and a prefill chunk are working space.
    """
    size = request.size
    weights = layers * size.layer_bytes + (size.ends_bytes if ends else 0)
    kv = layers * size.kv_bytes * request.context * request.max_sequences
    return weights * 5 // 4 + kv + working_bytes(size)


def working_bytes(size: ModelSize) -> int:
    """Bytes of working space of a stage process, whatever the number of its layers."""
    return _WORKING_BYTES + size.hidden_bytes(_WORKING_ROWS)


def max_layers(request: PlacementRequest, host: StageHost) -> int:
    """Greatest number of layers, up to all, that the host's memory holds."""
    counts = range(1, request.size.layers + 1)
    return bisect_right(counts, host.memory_bytes, key=lambda n: memory_needed(request, n, host.coordinator))


def hop_s(request: PlacementRequest, links: Links, start: str, end: str) -> float:
    """Seconds of one hidden state (1, D) in float32 from node ``start`` to node ``end``; 0 within a node."""
    if start == end:
        return 0.0
    return link_between(links, start, end).message_s(request.size.hidden_bytes(1))


def _pass_s(size: ModelSize, host: StageHost, layers: LayerRange) -> float:
    """Seconds for one row to pass the weights of ``layers`` on ``host``."""
    return len(layers) * size.layer_bytes / host.decode_bytes_per_s(size)


def decode_step_s(
    request: PlacementRequest, plan: Plan, hosts: Sequence[StageHost], links: Links, coordinator: str
) -> float:
    """Predicted seconds of a decode step of one row: the pass of every stage, and N + 1 hops for N stages."""
    by_id = {host.id: host for host in hosts}
    weights_s = sum(_pass_s(request.size, by_id[host], layers) for host, layers in plan.stages)
    path = [coordinator, *(by_id[host].node for host, _ in plan.stages), coordinator]
    return weights_s + sum(hop_s(request, links, a, b) for a, b in pairwise(path))


def slowest_stage_s(request: PlacementRequest, plan: Plan, hosts: Sequence[StageHost]) -> float:
    """Predicted decode seconds of the slowest stage, which bounds the token rate of many sequences together."""
    by_id = {host.id: host for host in hosts}
    return max(_pass_s(request.size, by_id[host], layers) for host, layers in plan.stages)


def plan_cost_s(
    request: PlacementRequest, plan: Plan, hosts: Sequence[StageHost], links: Links, coordinator: str
) -> float:
    """The quantity that the policy minimises: greatest layers per byte of a host's memory, or seconds."""
    if request.policy == "speed":
        return decode_step_s(request, plan, hosts, links, coordinator)
    if request.policy == "throughput":
        return slowest_stage_s(request, plan, hosts)
    by_id = {host.id: host for host in hosts}
    return max(len(layers) / max(1, by_id[host].memory_bytes) for host, layers in plan.stages)
