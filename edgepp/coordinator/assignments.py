"""Layers of the plan by member, or the reason why a member runs none, for views and the status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.planner import Planner
from edgepp.placement.costs import memory_needed


def node_assignments(
    planner: Planner, members: Membership, drafts: Callable[[str], str] = lambda _: ""
) -> dict[str, dict[str, Any]]:
    """By node id: ``layers`` as half-open pairs, and the ``reason`` why there are none; empty while undecided.

    ``drafts`` says what a node does for guesses, in place of running layers.
    """
    held: dict[str, list[list[int]]] = {}
    for place in planner.places(members):
        held.setdefault(place.member.node, []).append([place.layers.start, place.layers.stop])
    return {
        member.node: {
            "layers": held.get(member.node, []),
            "reason": "" if member.node in held else _why_spare(planner, member, drafts(member.node)),
        }
        for member in members
    }


def _why_spare(planner: Planner, member: Member, drafts: str) -> str:
    """Why a member runs no layers."""
    request, facts = planner.request, member.facts
    if member.phase is MemberPhase.GONE:
        return f"it {member.gone_reason}"
    if not facts.stage_slots:
        return "it offers no stage process"
    if member.draining:
        return f"it is drained; `edgepp drain --undo {facts.name}` lets it run layers again"
    if drafts:
        return drafts
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
