"""What each member runs of the plan, or why it runs nothing: told to the members, so that each knows its own part."""

from __future__ import annotations

from typing import Any

from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.planner import Planner
from edgepp.placement.types import memory_needed


def node_assignments(director: Planner, members: Membership) -> dict[str, dict[str, Any]]:
    """By node id: ``layers`` as half-open pairs, and a ``reason`` where there are none; empty while it is undecided."""
    held: dict[str, list[list[int]]] = {}
    for member, _, layers, _ in director.stages(members):
        held.setdefault(member.node, []).append([layers.start, layers.stop])
    return {
        member.node: {
            "layers": held.get(member.node, []),
            "reason": "" if member.node in held else _spare(director, member),
        }
        for member in members
    }


def _spare(director: Planner, member: Member) -> str:
    """Why a member has no layers."""
    want, facts = director.want, member.facts
    if member.phase is MemberPhase.GONE:
        return f"it {member.went}"
    if not facts.stage_slots:
        return "it offers no stage process"
    if why := director.why_out(member.node):
        return why
    needed = memory_needed(want, 1, member.node == director.coordinator)
    if facts.memory_bytes // facts.stage_slots < needed:
        return (
            f"one layer needs {needed / 1e6:.0f} MB for {want.max_sequences} conversations of {want.context} positions,"
            f" and the node offers {facts.memory_bytes // facts.stage_slots / 1e6:.0f} MB to each stage process; free"
            " some, or raise --memory"
        )
    if not director.settled:
        return ""
    return director.reason or "the others hold all layers, and it stands by for them"
