"""The cluster's state as one JSON object, as `edgepp status --json` prints it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgepp.cluster.membership import Member, Membership
from edgepp.coordinator.assignments import node_assignments
from edgepp.coordinator.json_codec import encode_sampling
from edgepp.coordinator.link_bans import avoided_links
from edgepp.coordinator.live_answers import LiveAnswers
from edgepp.coordinator.model_change import ModelChanger
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.rates import Rates
from edgepp.coordinator.recent_events import RecentEvents
from edgepp.coordinator.rollout import Progress, Rollout
from edgepp.coordinator.trust_store import TrustStore
from edgepp.engine.stage_watch import SUSPECT_S
from edgepp.host_system.sleep_inhibitor import SleepInhibitor
from edgepp.wire.address import Address
from edgepp.wire.messages.nodes import Loaded

SCHEMA = 1


@dataclass(frozen=True)
class HttpAddress:
    """Address at which clients of OpenAI, Anthropic and Ollama reach the cluster."""

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
    rates: Rates
    events: RecentEvents
    address: Address
    """Where the coordinator listens."""
    began_s: float
    """When the coordinator began, by ``time.monotonic``."""
    sleep: SleepInhibitor | None = None
    """What keeps this machine awake; None where its own node does."""
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
            "running": sources.answers.running(),
        },
        "rates": sources.rates.to_json(),
        "trip": sources.rates.trip,
        "events": sources.events.to_json(),
        "engine": _engine(sources),
        "guesses": _guesses(sources),
        "sleep_lock": sources.sleep.state if sources.sleep is not None else None,
        "nodes": _nodes(sources, stages),
        "stages": stages,
        "sums": sources.rollout.sums.report(),
        "avoided_links": avoided_links(planner.avoided_links, sources.members),
    }


def _loading(sources: StatusSources, state: str) -> dict[str, Any] | None:
    """Progress of the model that loads; None while the model answers."""
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


def _guesses(sources: StatusSources) -> dict[str, Any]:
    """What guesses tokens ahead: ``lookup`` and the small model of a process, ``model`` on ``node``, or nothing.

    ``problem`` says why a process that is to guess does not; ``progress`` is the loaded part of its model.
    """
    manager, placement = sources.pipeline_manager, sources.rollout.drafts
    pipeline = manager.latest
    drafts = pipeline.drafts if pipeline is not None else None
    drafter = drafts.drafter if drafts is not None else None
    return {
        "speculate": manager.options.speculate,
        "model": drafter.model if drafter is not None else None,
        "node": drafter.node if drafter is not None else None,
        "progress": round(placement.progress(), 3),
        "problem": (drafts.problem if drafts is not None else "") or placement.failure,
    }


def _nodes(sources: StatusSources, stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    drafts = sources.rollout.drafts
    assignments = node_assignments(sources.planner, sources.members, drafts.task)
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
                    *(["draft"] if drafts.drafts_on(member.node) else []),
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
                "half_s": facts.half_ns / 1e9,
                "rtt_s": member.rtt_us / 1e6,
                "clock_offset_s": round(member.clock_offset_us / 1e6, 3),
                "sleep_lock": member.sleep_lock,
                "version": facts.version,
                "stage_slots": facts.stage_slots,
                "busy": _busy(member.node, stages),
                **assignments[member.node],
            }
        )
    return nodes


def _busy(node: str, stages: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean share of their time in which the stages of ``node`` have computed lately; None where none is known."""
    shares = [stage["busy"] for stage in stages if stage["node_id"] == node and stage.get("busy") is not None]
    return round(sum(shares) / len(shares), 3) if shares else None


def stage_statuses(sources: StatusSources) -> list[dict[str, Any]]:
    """One object per stage of the plan, in order."""
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
