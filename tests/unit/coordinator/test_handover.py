from __future__ import annotations

from edgepp.coordinator.handover import Handover, RunningStage
from edgepp.layer_range import LayerRange
from edgepp.wire.messages.nodes import Load, Retire, Unload, Warm

FIRST = [RunningStage("a", 0, 7, LayerRange(0, 10)), RunningStage("b", 0, 7, LayerRange(10, 30))]
SECOND = [RunningStage("a", 0, 8, LayerRange(0, 30))]


def load(plan_id: int, slot: int = 0) -> Load:
    return Load(plan_id, slot, "m", 0, 30, exact=False, kv_bits=0)


def test_the_first_stages_leave_nothing_and_neighbours_are_kept_warm() -> None:
    handover = Handover()
    orders = [("a", load(7)), ("c", Unload(7, 0))]
    assert handover.hold_back(orders) == orders
    assert handover.moved_to(FIRST, "m") == [("a", Warm(7, "m", 10, 30)), ("b", Warm(7, "m", 0, 10))]
    assert handover.moved_to(FIRST, "m") == []


def test_stages_of_a_former_plan_end_when_the_pipeline_has_moved() -> None:
    handover = Handover()
    handover.moved_to(FIRST, "m")
    assert handover.hold_back([("b", Unload(8, 0)), ("c", Unload(8, 0)), ("a", load(8))]) == [
        ("c", Unload(8, 0)),
        ("a", load(8)),
    ]
    assert handover.moved_to(SECOND, "m") == [("b", Unload(8, 0)), ("a", Retire(7, 0))]
    assert handover.moved_to(SECOND, "m") == []


def test_a_slot_that_a_still_newer_plan_uses_is_not_unloaded() -> None:
    handover = Handover()
    handover.moved_to(FIRST, "m")
    handover.hold_back([("b", Unload(8, 0)), ("a", load(8))])
    handover.hold_back([("b", load(9)), ("a", load(9))])
    ended = handover.moved_to([stage._replace(plan_id=9) for stage in FIRST], "m")
    assert [order for _, order in ended if isinstance(order, Unload)] == []
