from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from edgepp.engine.rebuild_plan import Holding, Move, Rebuild, Refill, plan_rebuild
from edgepp.layer_range import LayerRange

THIRDS = (LayerRange(0, 10), LayerRange(10, 20), LayerRange(20, 30))
HALVES = (LayerRange(0, 15), LayerRange(15, 30))


def kept(stage: int, positions: int, stages: Sequence[LayerRange] = THIRDS) -> list[Holding]:
    """What a stage process that is part of both rings brings along: keys and values, and its log."""
    held = {1: positions}
    log = [Holding(stage, "log", stages[stage], held)] if stage + 1 < len(stages) else []
    return [Holding(stage, "kv", stages[stage], held), *log]


def test_stages_that_hold_everything_rebuild_nothing() -> None:
    rebuild = plan_rebuild(1, 100, THIRDS, [*kept(0, 100), *kept(1, 100), *kept(2, 99)])
    assert rebuild == Rebuild(1, 99)
    assert (rebuild.how, rebuild.reporters) == ("transfer", frozenset())


def test_a_lost_stage_is_refilled_from_the_log_before_it() -> None:
    rebuild = plan_rebuild(1, 100, THIRDS, [*kept(0, 100), *kept(2, 99)])
    assert rebuild == Rebuild(1, 99, refills=(Refill(1, 1),))
    assert (rebuild.how, rebuild.reporters) == ("log", frozenset({1}))


def test_the_first_stage_is_refilled_with_embeddings() -> None:
    assert plan_rebuild(1, 100, THIRDS, [*kept(1, 98), *kept(2, 97)]) == Rebuild(1, 97, refills=(Refill(0, 0),))


def test_neighbours_that_are_lost_are_refilled_through_each_other() -> None:
    rebuild = plan_rebuild(1, 100, THIRDS, kept(0, 100))
    assert rebuild == Rebuild(1, 100, refills=(Refill(1, 2),))
    assert rebuild.reporters == {2}


def test_what_no_stage_holds_is_prefilled() -> None:
    assert plan_rebuild(1, 100, THIRDS, []) == Rebuild(1, 0)
    assert plan_rebuild(2, 100, THIRDS, kept(0, 100)).how == "prefill"


def test_copies_bring_a_lost_stage_back_and_a_few_positions_are_given_up_for_them() -> None:
    copy = Holding(2, "copy", THIRDS[1], {1: 96})
    rebuild = plan_rebuild(1, 100, THIRDS, [*kept(0, 100), *kept(2, 99), copy])
    assert rebuild == Rebuild(1, 96, moves=(Move(1, 2, "copy", THIRDS[1]),))
    assert (rebuild.how, rebuild.reporters) == ("copies", frozenset({1}))


def test_copies_that_lag_far_behind_are_left() -> None:
    copy = Holding(2, "copy", THIRDS[1], {1: 20})
    assert plan_rebuild(1, 100, THIRDS, [*kept(0, 100), *kept(2, 99), copy]).how == "log"


def test_layers_come_from_whichever_stages_were_left() -> None:
    left = [
        Holding(2, "kv", THIRDS[0], {1: 100}),
        Holding(3, "kv", THIRDS[1], {1: 99}),
        Holding(2, "copy", THIRDS[2], {1: 98}),
    ]
    rebuild = plan_rebuild(1, 100, HALVES, left)
    assert rebuild.length == 98
    assert rebuild.moves == (
        Move(0, 2, "kv", LayerRange(0, 10)),
        Move(0, 3, "kv", LayerRange(10, 15)),
        Move(1, 3, "kv", LayerRange(15, 20)),
        Move(1, 2, "copy", LayerRange(20, 30)),
    )
    assert rebuild.reporters == {0, 1}
    assert plan_rebuild(1, 100, HALVES, left[:2]).how == "prefill"  # nobody has layers 20 to 29


POSITIONS = st.dictionaries(st.integers(1, 3), st.integers(1, 60), max_size=3)
HELD = st.builds(
    Holding,
    st.integers(0, 5),
    st.sampled_from(["kv", "log", "copy"]),
    st.sampled_from([*THIRDS, *HALVES]),
    POSITIONS,
)


@given(stages=st.sampled_from([THIRDS, HALVES]), holdings=st.lists(HELD, max_size=8))
def test_every_stage_gets_what_it_lacks_and_nobody_is_asked_for_more_than_he_has(
    stages: Sequence[LayerRange], holdings: list[Holding]
) -> None:
    rebuild = plan_rebuild(1, 50, stages, holdings)
    assert 0 <= rebuild.length <= 50
    if not rebuild.length:
        assert not rebuild.reporters
        return
    enough = [one for one in holdings if one.positions.get(1, 0) >= rebuild.length]
    refilled = {stage for refill in rebuild.refills for stage in range(refill.first, refill.until + 1)}
    for stage, layers in enumerate(stages):
        owns = any((one.holder, one.what, one.layers) == (stage, "kv", layers) for one in enough)
        parts = [move.layers for move in rebuild.moves if move.stage == stage]
        moved = [layer for part in parts for layer in range(part.start, part.stop)]
        assert owns or stage in refilled or moved == list(range(layers.start, layers.stop))
    for move in rebuild.moves:
        given = [one.layers for one in enough if (one.holder, one.what) == (move.holder, move.what)]
        assert any(one.start <= move.layers.start and move.layers.stop <= one.stop for one in given)
    for refill in rebuild.refills:
        assert not refill.first or any((one.holder, one.what) == (refill.first - 1, "log") for one in enough)
