"""Places of the processes of a plan's stages, each with its finished load. Pure: a plan and members in, places out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.load_tracker import host_id, split_host_id
from edgepp.coordinator.rank_loads import part_ids
from edgepp.layer_range import LayerRange
from edgepp.placement.values import Plan
from edgepp.wire.messages.nodes import Loaded


class Place(NamedTuple):
    """Member and slot of one process of a stage: of the whole stage, or of a rank that shares the stage's layers."""

    stage: int
    """Index of the stage in the plan."""
    rank: int
    member: Member
    slot: int
    layers: LayerRange
    loaded: Loaded | None
    """None while it loads."""

    @property
    def host(self) -> str:
        """Host id of the slot."""
        return host_id(self.member.node, self.slot)


def places_of(plan: Plan | None, plan_id: int, members: Membership) -> list[Place]:
    """Where each process of each stage of ``plan`` runs, by stage and rank; only loads of this ``plan_id`` count."""
    found = []
    for stage, (host, layers) in enumerate(plan.stages if plan else ()):
        for rank, part in enumerate(part_ids(host)):
            node, slot = split_host_id(part)
            if (member := members.get(node)) is not None:
                loaded = member.slot(slot)
                loaded = loaded if loaded and loaded.plan_id == plan_id else None
                found.append(Place(stage, rank, member, slot, layers, loaded))
    return found


def stages_of(places: Sequence[Place]) -> list[tuple[Member, int, LayerRange, Loaded | None]]:
    """The stages that ``places`` make: member and slot of rank 0, and its load once all ranks have loaded."""
    loading = {place.stage for place in places if place.loaded is None}
    return [
        (place.member, place.slot, place.layers, None if place.stage in loading else place.loaded)
        for place in places
        if place.rank == 0
    ]


def are_complete(places: Sequence[Place]) -> bool:
    """Whether every process of the plan has loaded its layers, on a member that is joined or ready."""
    return bool(places) and all(
        place.loaded is not None and place.member.phase in (MemberPhase.JOINED, MemberPhase.READY) for place in places
    )


def missing(places: Sequence[Place]) -> list[Place]:
    """The places that have not loaded their layers, on members that can be reached."""
    return [
        place
        for place in places
        if place.loaded is None and place.member.phase not in (MemberPhase.SUSPECT, MemberPhase.GONE)
    ]
