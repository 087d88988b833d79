"""The cluster's state as one JSON object, as `edgepp status --json` prints it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from edgepp.cluster.membership import Membership
from edgepp.coordinator.assignments import node_assignments
from edgepp.coordinator.json_codec import encode_sampling
from edgepp.coordinator.live_answer import LiveAnswers
from edgepp.coordinator.model_change import ModelChanger
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.rollout import Progress, Rollout
from edgepp.coordinator.trust_store import TrustStore
from edgepp.engine.stage_watch import SUSPECT_S
from edgepp.wire.address import Address
from edgepp.wire.messages.nodes import Loaded

SCHEMA = 1


@dataclass(frozen=True)
class HttpAddress:
    """Where clients of OpenAI, Anthropic and Ollama reach the cluster."""

    url: str
    """For clients on the coordinator's machine."""
    lan_urls: tuple[str, ...]
    """For clients on other machines; empty if the server listens on loopback only."""
    key_required: bool
    """Whether every client needs an API key."""


@dataclass(frozen=True)
class StatusSources:
    """The parts of a coordinator from which the cluster's state is read."""

    trust_store: TrustStore
    members: Membership
    planner: Planner
    rollout: Rollout
    pipeline_manager: PipelineManager
    answers: LiveAnswers
    changer: ModelChanger
    address: Address
    """Where the coordinator listens."""
    began_s: float
    """When the coordinator began, by ``time.monotonic``."""
    http: HttpAddress | None = None
    """None without an HTTP server."""

    @property
    def reason(self) -> str:
        """What answers wait for, such as machines that are away; empty while a pipeline is open."""
        return self.pipeline_manager.held or self.rollout.waiting(
            self.trust_store.away({member.node for member in self.members.present})
        )


def cluster_status(sources: StatusSources) -> dict[str, Any]:
    """The cluster's state. Layer ranges are half-open pairs, times in seconds, memory in bytes, rates per second."""
    planner, pipeline_manager = sources.planner, sources.pipeline_manager
    stages = stage_statuses(sources)
    answers = pipeline_manager.pipeline is not None and not pipeline_manager.held
    state = "ready" if answers else "loading" if stages else "waiting"
    timing = sources.answers.last
    return {
        "schema": SCHEMA,
        "cluster": sources.trust_store.cluster.id,
        "coordinator": sources.trust_store.cluster.coordinator.name,
        "address": str(sources.address),
        "http": asdict(sources.http) if sources.http else None,
        "model": pipeline_manager.model,
        "state": state,
        "reason": sources.reason,
        "loading": _loading(sources, state),
        "change": change.to_json() if (change := sources.changer.change) else None,
        "plan_version": planner.plan_version,
        "moved": pipeline_manager.runs_over(planner.plan_version),
        "view": sources.members.version,
        "policy": planner.request.policy,
        "context": planner.request.context,
        "max_sequences": planner.request.max_sequences,
        "exact": planner.exact,
        "kv_bits": planner.kv_bits or None,
        "sampling": encode_sampling(pipeline_manager.sampling),
        "uptime_s": round(time.monotonic() - sources.began_s, 1),
        "answers": {
            "under_way": len(sources.answers),
            "done": sources.answers.num_finished,
            "last_decode_tokens_per_s": round(timing.decode_tokens_per_s, 3) if timing else None,
            "last_ttft_s": round(timing.ttft_s, 4) if timing else None,
        },
        "engine": _engine(sources),
        "nodes": _nodes(sources),
        "stages": stages,
    }


def _loading(sources: StatusSources, state: str) -> dict[str, Any] | None:
    """How far the model is, while it does not answer; None while it does."""
    if state == "ready":
        return None
    estimate = sources.rollout.estimate
    eta_s = estimate.eta_s
    return {
        "state": state,
        "node": sources.rollout.slowest(),
        "progress": round(estimate.fraction, 3),
        "eta_seconds": None if eta_s is None else round(eta_s, 1),
    }


def _engine(sources: StatusSources) -> dict[str, Any]:
    """The engine's load, prefix reuse and recoveries, since the pipeline was opened; empty without a pipeline.

    A pipeline that has lost its stages keeps its requests.
    """
    pipeline = sources.pipeline_manager.latest
    if pipeline is None:
        return {}
    load = pipeline.engine.load
    return {
        "live": load.live,
        "waiting": load.waiting,
        "preempted": load.preempted,
        "held_positions": load.held,
        "kept_positions": load.kept,
        "prompt_tokens": load.reuse.asked,
        "reused_tokens": load.reuse.reused,
        "recoveries": pipeline.engine.recoveries,
    }


def _nodes(sources: StatusSources) -> list[dict[str, Any]]:
    assignments = node_assignments(sources.planner, sources.members)
    nodes = []
    for member in sources.members:
        facts = member.facts
        is_coordinator = member.node == sources.trust_store.cluster.coordinator.node
        nodes.append(
            {
                "node": member.node,
                "name": facts.name,
                "roles": [
                    *(["coordinator"] if is_coordinator else []),
                    *(["stage"] if assignments[member.node]["layers"] else []),
                ],
                "state": member.phase.value,
                "draining": member.draining,
                "address": member.host,
                "memory_bytes": facts.memory_bytes,
                "memory_free_bytes": member.memory_free_bytes,
                "backend": facts.backend,
                "device": facts.device,
                "threads": facts.threads,
                "pinned": [facts.start, facts.stop] if facts.stop else None,
                "stream_bytes_per_s": facts.stream_bytes_per_s,
                "flops_per_s": facts.flops_per_s,
                "rtt_s": member.rtt_us / 1e6,
                "clock_offset_s": round(member.clock_offset_us / 1e6, 3),
                "version": facts.version,
                "stage_slots": facts.stage_slots,
                **assignments[member.node],
            }
        )
    return nodes


def stage_statuses(sources: StatusSources) -> list[dict[str, Any]]:
    """One object per stage of the plan, in order."""
    pipeline, timing = sources.pipeline_manager.pipeline, sources.answers.last
    stage_stats = pipeline.engine.stage_stats if pipeline else []
    infos = pipeline.stages if pipeline else ()
    reports = []
    for index, (member, slot, layers, loaded) in enumerate(sources.planner.stages(sources.members)):
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
            "progress": _progress(progress, loaded),
            "weight_bytes": loaded.weight_bytes if loaded else None,
            "resident_bytes": loaded.resident_bytes if loaded else None,
            "prefill_tokens_per_s": round(1e6 / loaded.prefill_us, 1) if loaded and loaded.prefill_us else None,
            "decode_s": loaded.decode_us / 1e6 if loaded else None,
        }
        if index < len(infos):
            stage |= {"hop_s": infos[index].hop_s, "link_bytes_per_s": infos[index].bytes_per_s or None}
        if index < len(stage_stats):
            stats = stage_stats[index]
            stage |= {"sequences": stats.sequences, "kv_bytes": stats.kv_bytes}
            stage |= {"frames": stats.frames, "dropped": stats.dropped, "queue_s": round(stats.queue_s, 6)}
            stage |= {"received_bytes": stats.received_bytes, "sent_bytes": stats.sent_bytes}
            stage |= {"reconnects": stats.reconnects, "silent_s": round(stats.silent_s, 1)}
            stage["state"] = "suspect" if loaded and stats.silent_s > SUSPECT_S else stage["state"]
        if timing is not None and timing.tokens > 1 and index < len(timing.stages):
            steps = timing.tokens - 1
            stage |= {
                "stage_s": timing.stages[index].decode_s / steps,
                "wire_s": timing.stages[index].wire_s / steps,
            }
        reports.append(stage)
    return reports


def _progress(progress: Progress | None, loaded: Loaded | None) -> float:
    """The loaded fraction of a stage, from 0 to 1."""
    if loaded is not None:
        return 1.0
    if progress is None or not progress.total_bytes:
        return 0.0
    return round(min(1.0, progress.done_bytes / progress.total_bytes), 3)
