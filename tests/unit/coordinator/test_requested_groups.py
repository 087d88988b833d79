"""Members that ask to share layers: one stage of several nodes in the plan, its loads, and its end."""

from __future__ import annotations

from dataclasses import replace

from edgepp.coordinator.rank_loads import RankMeetings
from edgepp.coordinator.stage_losses import StageLosses
from edgepp.model.tensor_shares import TensorUnits
from edgepp.placement.values import LinkSpeed, SharedLayer
from edgepp.wire.messages.nodes import Load, NotLoaded
from edgepp.wire.messages.rank_meetings import RankAt, RankListens
from tests.unit.coordinator.planned_cluster import AIR, HERE, MINI, SIZE, Cluster

SHARED = replace(SIZE, shared=SharedLayer(TensorUnits(8, 1, 1536, 32), 500_000))


def sharing() -> Cluster:
    cluster = Cluster()
    cluster.planner.change_model("model", replace(cluster.planner.request, size=SHARED))
    return cluster


def loads(orders: list[tuple[str, object]]) -> dict[str, Load]:
    return {node: order for node, order in orders if isinstance(order, Load)}


def test_two_members_that_ask_for_the_same_layers_are_one_stage() -> None:
    cluster = sharing()
    cluster.join(HERE, start=0, stop=10, tensor=2)
    cluster.after(3.0)
    assert "waits for another machine to share each layer" in cluster.planner.why_excluded(HERE)
    assert "`edgepp join --layers 0-9 --tensor 2`" in cluster.planner.reason
    cluster.join(AIR)
    cluster.join(MINI, start=0, stop=10, tensor=2)
    orders = cluster.after(3.0)
    found = loads(orders)  # type: ignore[arg-type]
    assert {found[node].rank for node in (HERE, MINI)} == {0, 1}
    assert found[HERE].group == found[MINI].group != 0
    assert found[HERE].weights == (1, 1)
    assert (found[HERE].start, found[HERE].stop) == (found[MINI].start, found[MINI].stop) == (0, 10)
    assert found[AIR].group == 0
    [first, second] = cluster.planner.stages(cluster.members)
    assert (str(first[2]), str(second[2])) == ("0-9", "10-29")
    cluster.load([one for one in orders if one[0] != MINI])
    assert cluster.planner.stages(cluster.members)[0][3] is None
    assert not cluster.planner.complete(cluster.members)
    cluster.load([one for one in orders if one[0] == MINI])
    assert cluster.planner.complete(cluster.members)


def test_a_stage_ends_with_one_of_its_members() -> None:
    cluster = sharing()
    cluster.join(HERE, tensor=2)
    cluster.join(MINI, tensor=2)
    cluster.load(cluster.after(3.0))
    assert cluster.planner.complete(cluster.members)
    cluster.members.left(MINI)
    cluster.after(0.2)
    assert cluster.planner.plan is None
    cluster.join(MINI, tensor=2, incarnation=2)
    cluster.until_complete(10.0)


def test_other_wishes_make_other_groups() -> None:
    cluster = sharing()
    cluster.join(HERE, start=0, stop=10, tensor=2)
    cluster.join(MINI, start=10, stop=30, tensor=2)
    cluster.after(3.0)
    assert cluster.planner.plan is None
    assert all("waits for another" in cluster.planner.why_excluded(node) for node in (HERE, MINI))


def test_layers_that_so_many_cannot_share_are_named() -> None:
    cluster = sharing()
    cluster.planner.change_model("model", replace(cluster.planner.request, size=SIZE))
    cluster.join(HERE, tensor=2)
    cluster.join(MINI, tensor=2)
    cluster.after(3.0)
    assert "cannot be shared" in cluster.planner.why_excluded(HERE)


def test_by_policy_speed_members_share_where_sums_were_measured() -> None:
    cluster = sharing()
    request = replace(cluster.planner.request, policy="speed")
    cluster.planner.change_model("model", request)
    cluster.join(HERE, stream_bytes_per_s=1_000_000_000, flops_per_s=100_000_000_000)
    cluster.join(MINI, stream_bytes_per_s=1_000_000_000, flops_per_s=100_000_000_000)
    cluster.until_complete(10.0)
    assert not any(cluster.planner.group(stage) for stage in range(len(cluster.planner.stages(cluster.members))))
    cluster.planner.sums[min(HERE, MINI), max(HERE, MINI)] = LinkSpeed(1e-5, 1e9)
    cluster.after(3.0)
    assert cluster.planner.group(0)
    assert {place.member.node for place in cluster.planner.places(cluster.members)} == {HERE, MINI}
    before = cluster.planner.plan_version
    cluster.planner.sums.clear()
    cluster.planner.sums[min(HERE, MINI), max(HERE, MINI)] = LinkSpeed(1e-1, 1e9)
    cluster.after(3.0)
    assert cluster.planner.plan_version > before
    assert not cluster.planner.group(0)


def test_ranks_are_told_where_the_others_listen_once_all_do() -> None:
    cluster = sharing()
    cluster.join(HERE, tensor=2)
    cluster.join(MINI, tensor=2)
    members = {rank: cluster.members.get(node) for rank, node in enumerate((HERE, MINI))}
    present = {rank: member for rank, member in members.items() if member is not None}
    meetings = RankMeetings()
    for _ in range(2):  # ranks that have ended meet anew
        assert meetings.listens(RankListens(5, 4001), 0, present) == []
        assert meetings.listening(5) == (0,)
        told = dict(meetings.listens(RankListens(5, 4002), 1, present))
        assert isinstance(told[HERE], RankAt)
        assert (told[HERE].rank, told[HERE].key, told[MINI].rank) == (1, MINI, 0)
        assert told[HERE].addresses.endswith(":4002")
        assert told[MINI].addresses.endswith(":4001")


class Suspended:
    """What a pipeline manager is asked to do."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def suspend(self, reason: str, _: object) -> None:
        self.reasons.append(reason)


def test_a_lost_rank_is_named_with_its_member() -> None:
    cluster = sharing()
    cluster.join(HERE, tensor=2)
    cluster.join(MINI, tensor=2)
    cluster.load(cluster.after(3.0))
    manager = Suspended()
    losses = StageLosses(cluster.planner, cluster.members, manager)  # type: ignore[arg-type]
    places = cluster.planner.places(cluster.members)
    losses.note_order(places)
    for place in places:
        losses.ended(place.member, NotLoaded(cluster.planner.plan_id, 0, "it is gone", ""))
        assert manager.reasons[-1].startswith(f"rank {place.rank} of stage 0 (layers 0-29) on node")
        assert f"on node {place.member.facts.name}" in manager.reasons[-1]
