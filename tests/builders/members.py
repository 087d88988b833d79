"""Members of a cluster as their messages and its status describe them."""

from __future__ import annotations

from typing import Any

from edgepp.wire.messages.nodes import Enrol, Heartbeat, Loaded


def facts(incarnation: int = 1, **changes: Any) -> Enrol:
    """The message by which a node enrols, with ``changes`` of its fields."""
    given = Enrol(
        incarnation=incarnation,
        name="mini",
        version="0.1.0",
        addresses="10.0.0.2",
        memory_bytes=8_000_000_000,
        backend="onnx",
        device="cpu",
        threads=2,
        stage_slots=1,
        start=0,
        stop=0,
        stream_bytes_per_s=10_000_000_000,
        flops_per_s=100_000_000_000,
    )
    return given._replace(**changes)


def beat(incarnation: int = 1, free_memory_bytes: int = 1) -> Heartbeat:
    """A heartbeat of the node's incarnation."""
    return Heartbeat(incarnation, free_memory_bytes, clock_us=1, rtt_us=300)


def loaded(plan: int = 1, slot: int = 0) -> Loaded:
    """A node's report that one slot holds its layers."""
    return Loaded(plan, slot, 4000, 77, "onnx", "cpu", 1, 1, 1, 1)


def live_node(name: str, **more: Any) -> dict[str, Any]:
    """A node of ``edgepp status --json``, with ``more`` of its keys."""
    return {
        "node": name * 8, "name": name, "roles": ["stage"], "state": "ready", "memory_bytes": 8 * 10**9,
        "backend": "onnx", "device": "cpu", "pinned": None, "stream_bytes_per_s": 1e10,
        "flops_per_s": 1e11, "half_s": 3e-5, "rtt_s": 0.004, "layers": [[0, 15]], "stage_slots": 1,
        **more,
    }  # fmt: skip


def live_stage(name: str, **more: Any) -> dict[str, Any]:
    """A stage of ``edgepp status --json``, with ``more`` of its keys."""
    return {"node_id": name * 8, "layers": [0, 15], "hop_s": 0.001, "link_bytes_per_s": None, **more}
