"""The cluster as a page shows it: the part of its state that clients may see, with its links. Pure.

The source is the state that `edgepp status --json` prints. What flickers without meaning is rounded, so that a feed has
nothing to send while nothing happens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

SCHEMA = 1
_WHOLE = (
    "model", "state", "reason", "loading", "change", "coordinator", "plan_version", "moved", "policy", "context",
    "max_sequences", "exact", "kv_bits", "answers", "rates", "trip", "guesses",
)  # fmt: skip
_ENGINE = ("live", "waiting", "preempted", "held_positions", "kept_positions", "prompt_tokens", "reused_tokens",
           "recoveries")  # fmt: skip
_NODE = (
    "node", "name", "roles", "state", "draining", "memory_bytes", "backend", "device", "threads", "pinned", "layers",
    "reason", "busy", "stream_bytes_per_s", "flops_per_s", "version", "stage_slots",
)  # fmt: skip
_STAGE = (
    "index", "layers", "node", "node_id", "backend", "device", "state", "progress", "weight_bytes", "resident_bytes",
    "kv_bytes", "sequences", "busy", "decode_s", "prefill_tokens_per_s", "reconnects",
)  # fmt: skip
_MEMORY_STEP = 64 << 20
_RTT_STEPS = (1, 2, 5, 10)


def cluster_view(status: Mapping[str, Any], *, administers: bool) -> dict[str, Any]:
    """The view for one client. Addresses and events, which tell of strangers too, are for one that ``administers``."""
    view: dict[str, Any] = {"schema": SCHEMA, "administers": administers} | _some(status, _WHOLE)
    view["engine"] = _some(status.get("engine") or {}, _ENGINE)
    view["nodes"] = [_node(node, administers=administers) for node in status.get("nodes", ())]
    view["stages"] = [_some(stage, _STAGE) for stage in status.get("stages", ())]
    view["links"] = links(status)
    view["events"] = list(status.get("events", ())) if administers else []
    return view


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The members of ``after`` that differ from those of ``before``."""
    return {name: value for name, value in after.items() if name not in before or before[name] != value}


def links(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The links of the ring in order, the way back last: nodes by id, one-way seconds, bytes per second.

    ``rate`` is what the link was measured to carry, ``traffic`` what it carries at present; None where not known.
    """
    stages = [stage for stage in status.get("stages", ()) if "hop_s" in stage]
    if not stages:
        return []
    nodes = status.get("nodes", ())
    coordinator = next((str(node["node"]) for node in nodes if "coordinator" in node["roles"]), "")
    found = []
    before = coordinator
    for stage in stages:
        way_s = stage["hop_s"] - stage.get("back_s", 0.0)
        after = str(stage["node_id"])
        found.append(_link(before, after, way_s, stage.get("link_bytes_per_s"), stage.get("traffic_bytes_per_s")))
        before = after
    back_s = stages[-1].get("back_s", 0.0)
    return [*found, _link(before, coordinator, back_s, None, None)]


def _link(
    before: str, after: str, way_s: float, bytes_per_s: float | None, traffic_bytes_per_s: float | None
) -> dict[str, Any]:
    told = {"from": before, "to": after, "latency_s": _rounded(way_s, 2)}
    return told | {"rate": _rounded(bytes_per_s, 2), "traffic": _rounded(traffic_bytes_per_s, 2)}


def _node(node: Mapping[str, Any], *, administers: bool) -> dict[str, Any]:
    told = _some(node, _NODE)
    free = node.get("memory_free_bytes")
    told["memory_free_bytes"] = None if free is None else free // _MEMORY_STEP * _MEMORY_STEP
    told["rtt_s"] = _coarse(node.get("rtt_s"))
    if administers:
        told["address"] = node.get("address")
    return told


def _some(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _rounded(value: float | None, digits: int) -> float | None:
    """``value`` rounded to ``digits`` significant digits."""
    return None if value is None else float(f"{value:.{digits - 1}e}")


def _coarse(value: float | None) -> float | None:
    """``value`` as 1, 2 or 5 times a power of ten, whichever is next below."""
    if not value:
        return value
    power = 10.0 ** math.floor(math.log10(value))
    return float(f"{max(step for step in _RTT_STEPS if step * power <= value * 1.0001) * power:.0e}")
