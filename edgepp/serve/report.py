"""A cluster's state as one JSON object: what `edgepp status --json` prints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from edgepp.serve.forms import drawing
from edgepp.serve.standing import standings

if TYPE_CHECKING:
    from edgepp.serve.coordinator import Coordinator

SCHEMA = 1


def report(coordinator: Coordinator) -> dict[str, Any]:
    """Everything that people ask of a cluster. Layers are half-open, times in seconds, memory in bytes."""
    director, serving = coordinator.director, coordinator.serving
    stages = stage_reports(coordinator)
    state = "ready" if serving.pipeline is not None else "loading" if stages else "waiting"
    timing = coordinator.answers.last
    return {
        "schema": SCHEMA,
        "cluster": coordinator.registry.cluster.id,
        "coordinator": coordinator.registry.cluster.coordinator.name,
        "address": str(coordinator.address),
        "model": serving.model,
        "state": state,
        "reason": coordinator.reason,
        "epoch": director.count,
        "view": coordinator.members.version,
        "policy": director.want.policy,
        "context": director.want.context,
        "slots": director.want.slots,
        "exact": director.exact,
        "kv_bits": director.kv_bits or None,
        "sampling": drawing(serving.sampling),
        "uptime_s": round(time.monotonic() - coordinator.began_s, 1),
        "answers": {
            "under_way": len(coordinator.answers),
            "done": coordinator.answers.done,
            "last_decode_tok_s": round(timing.decode_tok_s, 3) if timing else None,
            "last_ttft_s": round(timing.ttft_s, 4) if timing else None,
        },
        "engine": _engine(coordinator),
        "nodes": _nodes(coordinator),
        "stages": stages,
    }


def _engine(coordinator: Coordinator) -> dict[str, Any]:
    """What the engine has to do, and how much of the prompts it had computed before; counts begin with the pipeline."""
    pipeline = coordinator.serving.pipeline
    if pipeline is None:
        return {}
    load = pipeline.engine.load
    return {
        "live": load.live,
        "waiting": load.waiting,
        "preempted": load.preempted,
        "kept_positions": load.kept,
        "prompt_tokens": load.reuse.asked,
        "reused_tokens": load.reuse.reused,
    }


def _nodes(coordinator: Coordinator) -> list[dict[str, Any]]:
    parts = standings(coordinator.director, coordinator.members)
    nodes = []
    for member in coordinator.members:
        facts = member.facts
        here = member.node == coordinator.registry.cluster.coordinator.node
        nodes.append(
            {
                "node": member.node,
                "name": facts.name,
                "roles": [*(["coordinator"] if here else []), *(["stage"] if parts[member.node]["layers"] else [])],
                "state": member.phase.value,
                "address": member.host,
                "memory": facts.memory,
                "memory_free": member.memory_free,
                "backend": facts.backend,
                "device": facts.device,
                "threads": facts.threads,
                "pinned": [facts.start, facts.stop] if facts.stop else None,
                "stream_bytes_s": facts.stream_bps,
                "flops": facts.flops,
                "rtt_s": member.rtt_us / 1e6,
                "clock_off_s": round(member.clock_off_us / 1e6, 3),
                "version": facts.version,
                "stage_slots": facts.slots,
                **parts[member.node],
            }
        )
    return nodes


def stage_reports(coordinator: Coordinator) -> list[dict[str, Any]]:
    """One object a stage of the plan, in order."""
    pipeline, timing = coordinator.serving.pipeline, coordinator.answers.last
    gauges = pipeline.engine.gauges if pipeline else []
    infos = pipeline.stages if pipeline else ()
    reports = []
    for index, (member, slot, layers, loaded) in enumerate(coordinator.director.stages(coordinator.members)):
        progress = coordinator.rollout.progress.get((member.node, slot))
        stage: dict[str, Any] = {
            "index": index,
            "layers": [layers.start, layers.stop],
            "node": member.facts.name,
            "node_id": member.node,
            "address": f"{member.host}:{loaded.port}" if loaded else "",
            "pid": loaded.pid if loaded else None,
            "backend": loaded.backend if loaded else member.facts.backend,
            "device": loaded.device if loaded else member.facts.device,
            "state": "ready" if loaded else "loading",
            "progress": _share(progress.done, progress.total) if progress and not loaded else float(loaded is not None),
            "weight_bytes": loaded.weight_bytes if loaded else None,
            "resident_bytes": loaded.resident_bytes if loaded else None,
            "prefill_tok_s": round(1e6 / loaded.prefill_us, 1) if loaded and loaded.prefill_us else None,
            "decode_s": loaded.decode_us / 1e6 if loaded else None,
        }
        if index < len(infos):
            stage |= {"hop_s": infos[index].hop_s, "link_bytes_s": infos[index].bytes_s or None}
        if index < len(gauges):
            gauge = gauges[index]
            stage |= {"sequences": gauge.sequences, "kv_bytes": gauge.kv_bytes, "dropped": gauge.dropped}
        if timing is not None and timing.tokens > 1 and index < len(timing.stages):
            steps = timing.tokens - 1
            stage |= {
                "stage_s": timing.stages[index].decode_s / steps,
                "wire_s": timing.stages[index].wire_s / steps,
            }
        reports.append(stage)
    return reports


def _share(done: int, total: int) -> float:
    return round(min(1.0, done / total), 3) if total else 0.0
