"""The state of each stage of the plan, as `edgepp status --json` prints it."""

from __future__ import annotations

from typing import Any

from edgepp.cluster.membership import Member
from edgepp.coordinator.rollout import Progress
from edgepp.coordinator.status_sources import StatusSources
from edgepp.engine.stage_watch import SUSPECT_S
from edgepp.wire.address import Address
from edgepp.wire.messages.nodes import Loaded


def stage_statuses(sources: StatusSources) -> list[dict[str, Any]]:
    """One object per stage of the plan, in order. Times in seconds, memory in bytes, rates per second."""
    pipeline, timing = sources.pipeline_manager.pipeline, sources.answers.last
    stage_stats = pipeline.engine.stage_stats if pipeline else []
    infos = pipeline.stages if pipeline else ()
    speeds = pipeline.engine.stage_speeds if pipeline else ()
    reports = []
    for index, (member, slot, layers, loaded) in enumerate(sources.planner.stages(sources.members)):
        progress = sources.rollout.progress.get((member.node, slot))
        stage: dict[str, Any] = {
            "index": index,
            "layers": [layers.start, layers.stop],
            "node": member.facts.name,
            "node_id": member.node,
            "address": str(Address(member.host, loaded.port)) if loaded else "",
            "pid": loaded.pid if loaded else None,
            "backend": loaded.backend if loaded else member.facts.backend,
            "device": loaded.device if loaded else member.facts.device,
            "state": "ready" if loaded else "loading",
            "progress": _progress(progress, loaded),
            "weight_bytes": loaded.weight_bytes if loaded else None,
            "resident_bytes": loaded.resident_bytes if loaded else None,
            "prefill_tokens_per_s": round(1e6 / loaded.prefill_us, 1) if loaded and loaded.prefill_us else None,
            "decode_s": loaded.decode_us / 1e6 if loaded else None,
            "ranks": _ranks(sources, index, member, loaded),
        }
        if index < len(infos):
            info = infos[index]
            stage |= {"hop_s": info.hop_s, "back_s": info.back_s, "link_bytes_per_s": info.bytes_per_s or None}
            stage["has_head"] = info.has_head
            stage |= speeds[index].to_json() if loaded and index < len(speeds) else {}
            stage |= {
                "busy": sources.rates.busy(index),
                "traffic_bytes_per_s": sources.rates.received_bytes_per_s(index),
            }
        if index < len(stage_stats):
            stats = stage_stats[index]
            stage |= {"sequences": stats.sequences, "kv_bytes": stats.kv_bytes}
            stage |= {"frames": stats.frames, "dropped": stats.dropped, "void": stats.void}
            stage |= {"received_bytes": stats.received_bytes, "sent_bytes": stats.sent_bytes}
            stage |= {"reconnects": stats.reconnects, "silent_s": round(stats.silent_s, 1)}
            stage |= {"queue_s": round(stats.queue_s, 6)}
            stage |= {"clock_offset_s": stats.clock_offset_s, "clock_error_s": stats.clock_error_s}
            stage["state"] = "suspect" if loaded and stats.silent_s > SUSPECT_S else stage["state"]
        if timing is not None and timing.tokens > 1 and index < len(timing.stages):
            steps = timing.tokens - 1
            stage |= {
                "stage_s": timing.stages[index].decode_s / steps,
                "wire_s": timing.stages[index].wire_s / steps,
            }
        reports.append(stage)
    return reports


def _ranks(sources: StatusSources, stage: int, member: Member, loaded: Loaded | None) -> list[dict[str, Any]]:
    """The processes that share the layers of a stage, on one machine or several, by rank; empty for one process."""
    places = [place for place in sources.planner.places(sources.members) if place.stage == stage]
    if len(places) > 1:
        weights = sources.planner.weights(stage)
        return [_rank(one.member, weights[one.rank], one.loaded.pid if one.loaded else None) for one in places]
    if loaded is None:
        return []
    shares = zip(loaded.rank_weights, loaded.rank_pids, strict=True)
    return [_rank(member, weight, pid) for weight, pid in shares]


def _rank(member: Member, weight: int, pid: int | None) -> dict[str, Any]:
    return {
        "node": member.facts.name,
        "node_id": member.node,
        "weight": weight,
        "pid": pid,
        "state": "loading" if pid is None else "ready",
    }


def _progress(progress: Progress | None, loaded: Loaded | None) -> float:
    """The loaded fraction of a stage, from 0 to 1."""
    if loaded is not None:
        return 1.0
    if progress is None or not progress.total_bytes:
        return 0.0
    return round(min(1.0, progress.done_bytes / progress.total_bytes), 3)
