"""A cluster's state as one JSON object: what `edgepp status --json` prints."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from edgepp.cluster.membership import Membership
from edgepp.coordinator.answers import AnswerService
from edgepp.coordinator.assignments import node_assignments
from edgepp.coordinator.json_codec import encode_sampling
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.rollout import Rollout
from edgepp.coordinator.trust_store import TrustStore
from edgepp.wire.transport import Address

SCHEMA = 1


@dataclass(frozen=True)
class StatusSources:
    """The parts of a coordinator that a cluster's state is read from."""

    registry: TrustStore
    members: Membership
    director: Planner
    rollout: Rollout
    serving: PipelineManager
    answers: AnswerService
    address: Address
    """Where the coordinator listens."""
    began_s: float
    """When the coordinator began, by ``time.monotonic``."""


def cluster_status(sources: StatusSources) -> dict[str, Any]:
    """Everything that people ask of a cluster. Layers are half-open, times in seconds, memory in bytes."""
    director, serving = sources.director, sources.serving
    stages = stage_statuses(sources)
    state = "ready" if serving.pipeline is not None else "loading" if stages else "waiting"
    timing = sources.answers.last
    return {
        "schema": SCHEMA,
        "cluster": sources.registry.cluster.id,
        "coordinator": sources.registry.cluster.coordinator.name,
        "address": str(sources.address),
        "model": serving.model,
        "state": state,
        "reason": sources.rollout.waiting(sources.registry.away({member.node for member in sources.members.present})),
        "plan_version": director.count,
        "view": sources.members.version,
        "policy": director.want.policy,
        "context": director.want.context,
        "max_sequences": director.want.max_sequences,
        "exact": director.exact,
        "kv_bits": director.kv_bits or None,
        "sampling": encode_sampling(serving.sampling),
        "uptime_s": round(time.monotonic() - sources.began_s, 1),
        "answers": {
            "under_way": len(sources.answers),
            "done": sources.answers.done,
            "last_decode_tokens_per_s": round(timing.decode_tokens_per_s, 3) if timing else None,
            "last_ttft_s": round(timing.ttft_s, 4) if timing else None,
        },
        "engine": _engine(sources),
        "nodes": _nodes(sources),
        "stages": stages,
    }


def _engine(sources: StatusSources) -> dict[str, Any]:
    """What the engine has to do, and how much of the prompts it had computed before; counts begin with the pipeline."""
    pipeline = sources.serving.pipeline
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


def _nodes(sources: StatusSources) -> list[dict[str, Any]]:
    parts = node_assignments(sources.director, sources.members)
    nodes = []
    for member in sources.members:
        facts = member.facts
        here = member.node == sources.registry.cluster.coordinator.node
        nodes.append(
            {
                "node": member.node,
                "name": facts.name,
                "roles": [*(["coordinator"] if here else []), *(["stage"] if parts[member.node]["layers"] else [])],
                "state": member.phase.value,
                "address": member.host,
                "memory": facts.memory_bytes,
                "memory_free": member.memory_free,
                "backend": facts.backend,
                "device": facts.device,
                "threads": facts.threads,
                "pinned": [facts.start, facts.stop] if facts.stop else None,
                "stream_bytes_per_s": facts.stream_bytes_per_s,
                "flops": facts.flops_per_s,
                "rtt_s": member.rtt_us / 1e6,
                "clock_off_s": round(member.clock_off_us / 1e6, 3),
                "version": facts.version,
                "stage_slots": facts.stage_slots,
                **parts[member.node],
            }
        )
    return nodes


def stage_statuses(sources: StatusSources) -> list[dict[str, Any]]:
    """One object a stage of the plan, in order."""
    pipeline, timing = sources.serving.pipeline, sources.answers.last
    stage_stats = pipeline.engine.stage_stats if pipeline else []
    infos = pipeline.stages if pipeline else ()
    reports = []
    for index, (member, slot, layers, loaded) in enumerate(sources.director.stages(sources.members)):
        progress = sources.rollout.progress.get((member.node, slot))
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
            "prefill_tokens_per_s": round(1e6 / loaded.prefill_us, 1) if loaded and loaded.prefill_us else None,
            "decode_s": loaded.decode_us / 1e6 if loaded else None,
        }
        if index < len(infos):
            stage |= {"hop_s": infos[index].hop_s, "link_bytes_per_s": infos[index].bytes_per_s or None}
        if index < len(stage_stats):
            stats = stage_stats[index]
            stage |= {"sequences": stats.sequences, "kv_bytes": stats.kv_bytes, "dropped": stats.dropped}
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
