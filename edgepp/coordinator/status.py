"""The cluster's state as one JSON object, as `edgepp status --json` prints it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edgepp.coordinator.assignments import node_assignments
from edgepp.coordinator.json_codec import encode_sampling
from edgepp.coordinator.link_bans import avoided_links
from edgepp.coordinator.stage_status import stage_statuses
from edgepp.coordinator.status_sources import StatusSources

SCHEMA = 1


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
        "model": pipeline_manager.options.model,
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
        "sampling": encode_sampling(pipeline_manager.frontend.sampling),
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
