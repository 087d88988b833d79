"""Which layers of the plan each member runs, or why it runs none, as views and status show it."""

from __future__ import annotations

from typing import Any

from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.planner import Planner
from edgepp.placement.types import memory_needed


def node_assignments(planner: Planner, members: Membership) -> dict[str, dict[str, Any]]:
    """By node id: ``layers`` as half-open pairs, and the ``reason`` why there are none; empty while undecided."""
    held: dict[str, list[list[int]]] = {}
    for member, _, layers, _ in planner.stages(members):
        held.setdefault(member.node, []).append([layers.start, layers.stop])
    return {
        member.node: {
            "layers": held.get(member.node, []),
            "reason": "" if member.node in held else _why_spare(planner, member),
        }
        for member in members
    }


def _why_spare(planner: Planner, member: Member) -> str:
    """Why a member runs no layers."""
    request, facts = planner.request, member.facts
    if member.phase is MemberPhase.GONE:
        return f"it {member.gone_reason}"
    if not facts.stage_slots:
        return "it offers no stage process"
    if member.draining:
        return f"it is drained; `edgepp drain --undo {facts.name}` lets it run layers again"
    if why := planner.why_excluded(member.node):
        return why
    needed = memory_needed(request, 1, member.node == planner.coordinator)
    offered = facts.memory_bytes // facts.stage_slots
    if offered < needed:
        return (
            f"one layer needs {needed / 1e6:.0f} MB for {request.max_sequences} conversations of {request.context}"
            f" positions, and the node offers {offered / 1e6:.0f} MB per stage process; free some memory, or raise"
            " --memory"
        )
    if not planner.settled:
        return ""
    return planner.reason or "the others hold all layers, and this node stands by"
