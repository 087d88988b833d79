"""A stage that lost its sequences gets them back, over real sockets: by a replay, from another stage, from copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY
from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.copy_sender import CopySender
from edgepp.stage_process.kv_copies import KvCopies
from edgepp.stage_process.kv_pieces import CachePiece
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Fault, FrameLost
from edgepp.wire.messages.recovery import Held, Replay
from tests.builders.checkpoints import Checkpoints
from tests.live_stages import CAPACITY, Driver, LiveStage, live_stages
from tests.waiting import eventually

Start = Callable[..., LiveStage]
PROMPT, STEPS = 40, 5
LENGTH = PROMPT + STEPS


@pytest.fixture(autouse=True)
def copies_without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CopySender, "batch", 1)


@pytest.fixture(params=[(1,), (1, 1)], ids=["processes", "groups"])
def world(checkpoints: Checkpoints, request: pytest.FixtureRequest) -> Iterator[tuple[Start, Driver]]:
    """Stages of one process, or of two ranks."""
    with live_stages(checkpoints(TINY), [request.param]) as made:
        yield made


def rows(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, TINY.hidden)).astype(np.float32)


def converse(driver: Driver, sequence: int = 1) -> None:
    """A prompt in two chunks, and some decode steps."""
    prompt = rows(PROMPT, 0)
    driver.step(sequence, 0, prompt[:16])
    driver.step(sequence, 16, prompt[16:])
    for position in range(PROMPT, LENGTH):
        driver.send_batch([(sequence, position)], rows(1, position))
        driver.result()


def next_step(driver: Driver, sequence: int = 1) -> Array:
    return driver.step(sequence, LENGTH, rows(1, 99))


@pytest.fixture
def expected(world: tuple[Start, Driver]) -> Array:
    """The next hidden state where nothing was lost, of stages that the test does not see."""
    start, driver = world
    stages = [start(0, 2), start(2, 3), start(3, 4)]
    driver.attach(*stages)
    converse(driver)
    try:
        return next_step(driver)
    finally:
        for stage in stages:
            stage.stop()


def test_a_middle_stage_is_rebuilt_from_the_log_before_it(world: tuple[Start, Driver], expected: Array) -> None:
    start, driver = world
    first, lost, last = start(0, 2), start(2, 3), start(3, 4)
    driver.attach(first, lost, last)
    converse(driver)
    lost.stop()
    fresh = start(2, 3)
    held = driver.attach(first, fresh, last, inherits=driver.epoch)
    assert sorted((one.what, one.start, one.sequences, one.positions) for one in held) == [
        ("kv", 0, (1,), (LENGTH,)),
        ("kv", 3, (1,), (LENGTH,)),
        ("log", 0, (1,), (LENGTH,)),
    ]
    driver.tell(first, Replay(driver.epoch, 1, CAPACITY, 0, LENGTH, 1))
    driver.rebuilt(fresh, LENGTH)
    np.testing.assert_allclose(next_step(driver), expected, rtol=1e-4, atol=1e-5)
    held = driver.attach(first, fresh, last, inherits=driver.epoch)
    assert Held(driver.epoch, "log", 2, 3, (1,), (LENGTH + 1,)) in held


@pytest.mark.parametrize("until", [1, 2])
def test_a_sibling_is_rebuilt_as_a_copy_of_what_both_share(world: tuple[Start, Driver], until: int) -> None:
    start, driver = world

    def choices() -> list[LiveStage]:
        stages = [start(0, 2), start(2, 3), start(3, 4)]
        driver.attach(*stages)
        converse(driver)
        driver.step(2, PROMPT, rows(1, 50), source=1)
        return stages

    def following() -> Array:
        return driver.step(2, PROMPT + 1, rows(1, 51))

    stages = choices()
    undisturbed = following()
    for stage in stages:
        stage.stop()
    first, *lost = choices()
    for stage in lost[:until]:
        stage.stop()
    later = [start(2, 3), *lost[1:]] if until == 1 else [start(2, 3), start(3, 4)]
    driver.attach(first, *later, inherits=driver.epoch)
    driver.tell(first, Replay(driver.epoch, 1, CAPACITY, 0, LENGTH, until))
    driver.tell(first, Replay(driver.epoch, 2, CAPACITY, PROMPT, PROMPT + 1, until, 1))
    driver.rebuilt(later[until - 1], LENGTH)
    driver.rebuilt(later[until - 1], PROMPT + 1, sequence=2)
    np.testing.assert_allclose(following(), undisturbed, rtol=1e-4, atol=1e-5)


def test_two_stages_in_a_row_are_rebuilt_and_the_last_one_reports(world: tuple[Start, Driver], expected: Array) -> None:
    start, driver = world
    first, second, last = start(0, 2), start(2, 3), start(3, 4)
    driver.attach(first, second, last)
    converse(driver)
    second.stop()
    last.stop()
    second, last = start(2, 3), start(3, 4)
    driver.attach(first, second, last, inherits=driver.epoch)
    driver.tell(first, Replay(driver.epoch, 1, CAPACITY, 0, LENGTH, 2))
    driver.rebuilt(last, LENGTH)
    np.testing.assert_allclose(next_step(driver), expected, rtol=1e-4, atol=1e-5)


def test_the_first_stage_is_rebuilt_by_frames_that_end_there(world: tuple[Start, Driver], expected: Array) -> None:
    start, driver = world
    first, last = start(0, 2), start(2, 4)
    driver.attach(first, last)
    converse(driver)
    first.stop()
    first = start(0, 2)
    driver.attach(first, last, inherits=driver.epoch)
    driver.send(1, 0, rows(PROMPT, 0), until=0)
    for position in range(PROMPT, LENGTH):
        driver.send(1, position, rows(1, position), until=0)
    driver.rebuilt(first, LENGTH)
    np.testing.assert_allclose(next_step(driver), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_keys_and_values_of_another_stage_restore_bit_for_bit(world: tuple[Start, Driver], kv_bits: int | None) -> None:
    start, driver = world
    first, old, fresh = start(0, 2), start(2, 4, kv_bits), start(2, 4, kv_bits)
    driver.attach(first, old)
    converse(driver)
    before = next_step(driver)
    epoch = driver.epoch
    driver.attach(first, fresh, inherits=epoch)
    driver.restore(old, fresh, LENGTH, epoch=epoch)
    driver.rebuilt(fresh, LENGTH)
    np.testing.assert_array_equal(next_step(driver), before)


def keep_copies(keeper: LiveStage) -> dict[str, Any]:
    """Changes of ``Attach``: stage 1 sends copies to stage 0."""
    address = str(keeper.data.address)
    return {"stage0": {"keeps_copies": True}, "stage1": {"keeper_addresses": address}}


def kept(keeper: LiveStage, epoch: int) -> dict[int, int]:
    """Positions of each sequence that a keeper has, of the first layer range."""
    lengths = keeper.compute.bulk._copies.lengths(epoch)
    return dict(next(iter(lengths.values()), {}))


def test_copies_of_the_neighbour_restore_bit_for_bit(world: tuple[Start, Driver]) -> None:
    start, driver = world
    first, lost = start(0, 2), start(2, 4)
    driver.attach(first, lost, **keep_copies(first))
    converse(driver)
    before = next_step(driver)
    eventually("copies of all positions", lambda: kept(first, driver.epoch) == {1: LENGTH + 1})
    layout = lost.compute.runner.model.kv_layout
    copies = first.compute.bulk._copies.pieces((driver.epoch, 1), LayerRange(2, 4), 0, LENGTH + 1, layout)
    assert copies
    least = sum(len(piece.data) for piece in copies)
    eventually("the last piece is counted", lambda: lost.compute.status.bulk_traffic.sent_bytes >= least)
    lost.stop()
    fresh = start(2, 4)
    held = driver.attach(first, fresh, inherits=driver.epoch, **keep_copies(first))
    assert Held(driver.epoch, "copy", 2, 4, (1,), (LENGTH + 1,)) in held
    driver.restore(first, fresh, LENGTH, "copy")
    driver.rebuilt(fresh, LENGTH)
    np.testing.assert_array_equal(next_step(driver), before)
    eventually("copies of the new ring", lambda: kept(first, driver.epoch) == {1: LENGTH + 1})


def test_copies_follow_a_sequence_that_goes_back_and_end_with_it(world: tuple[Start, Driver]) -> None:
    start, driver = world
    first, last = start(0, 2), start(2, 4)
    driver.attach(first, last, **keep_copies(first))
    converse(driver)
    driver.step(1, 30, rows(3, 5))
    driver.step(2, 20, rows(4, 6), source=1)
    eventually("copies of both", lambda: kept(first, driver.epoch) == {1: 33, 2: 24})
    expected = driver.step(1, 33, rows(1, 7)), driver.step(2, 24, rows(1, 8))
    eventually("copies of both", lambda: kept(first, driver.epoch) == {1: 34, 2: 25})
    last.stop()
    fresh = start(2, 4)
    driver.attach(first, fresh, inherits=driver.epoch)
    driver.restore(first, fresh, 33, "copy")
    driver.rebuilt(fresh, 33)
    np.testing.assert_array_equal(driver.step(1, 33, rows(1, 7)), expected[0])
    first.compute.inbox.put(None)
    first.join()
    assert first.compute.bulk.nbytes == 0


def in_a_ring(*stages: LiveStage) -> dict[str, Any]:
    """Changes of ``Attach``: each stage sends copies to the next one, and the last one to the first."""
    keepers = [*stages[1:], stages[0]]
    return {
        f"stage{index}": {"keeps_copies": True, "keeper_addresses": str(keeper.data.address)}
        for index, keeper in enumerate(keepers)
    }


def test_a_second_loss_finds_the_copies_that_were_kept_before_the_first(
    world: tuple[Start, Driver], expected: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepp.stage_process.bulk_work.max_piece_bytes", lambda width: 4 * 4 * width)
    start, driver = world
    first, second, third = start(0, 2), start(2, 3), start(3, 4)
    driver.attach(first, second, third, **in_a_ring(first, second, third))
    converse(driver)
    for keeper in (first, second, third):
        eventually("copies of all positions", lambda keeper=keeper: kept(keeper, driver.epoch) == {1: LENGTH})
    first.stop()
    first = start(0, 2)
    driver.attach(first, second, third, inherits=driver.epoch, **in_a_ring(first, second, third))
    driver.restore(second, first, LENGTH, "copy")
    driver.rebuilt(first, LENGTH)
    came: list[int] = []
    keep = KvCopies.keep

    def counted(copies: KvCopies, key: Any, piece: CachePiece, *rest: Any) -> None:
        if copies is not first.compute.bulk._copies:
            came.append(piece.start)
        keep(copies, key, piece, *rest)

    monkeypatch.setattr(KvCopies, "keep", counted)
    np.testing.assert_array_equal(next_step(driver), expected)
    for keeper in (second, third):
        eventually("copies of the new position", lambda keeper=keeper: kept(keeper, driver.epoch) == {1: LENGTH + 1})
    assert came == [LENGTH, LENGTH], "what was kept before the loss was sent again"
    after = driver.step(1, LENGTH + 1, rows(1, 98))
    second.stop()
    second = start(2, 3)
    held = driver.attach(first, second, third, inherits=driver.epoch, **in_a_ring(first, second, third))
    (copies,) = [one for one in held if (one.what, one.start) == ("copy", 2)]
    assert copies.positions[0] > LENGTH
    driver.restore(third, second, LENGTH + 1, "copy")
    driver.rebuilt(second, LENGTH + 1)
    np.testing.assert_array_equal(driver.step(1, LENGTH + 1, rows(1, 98)), after)
    eventually("copies at the stage that was lost first", lambda: kept(first, driver.epoch) == {1: LENGTH + 2})
    eventually("copies at the stage that was lost next", lambda: kept(second, driver.epoch) == {1: LENGTH + 2})


def test_layers_come_from_two_stages(world: tuple[Start, Driver]) -> None:
    start, driver = world
    first, second, third = start(0, 2), start(2, 3), start(3, 4)
    driver.attach(first, second, third)
    converse(driver)
    before = next_step(driver)
    epoch, fresh = driver.epoch, start(2, 4)
    driver.attach(first, fresh, inherits=epoch)
    driver.restore(second, fresh, LENGTH, epoch=epoch, stop_layer=3)
    driver.restore(third, fresh, LENGTH, epoch=epoch, start_layer=3)
    driver.rebuilt(fresh, LENGTH)
    np.testing.assert_array_equal(next_step(driver), before)


def test_copies_of_a_long_answer_restore_bit_for_bit(world: tuple[Start, Driver]) -> None:
    start, driver = world
    first, lost, end = start(0, 2), start(2, 4), LENGTH + 64
    driver.attach(first, lost, **keep_copies(first))
    converse(driver)
    for position in range(LENGTH, end):
        driver.step(1, position, rows(1, position))
    before = driver.step(1, end, rows(1, 99))
    eventually("copies of all positions", lambda: kept(first, driver.epoch) == {1: end + 1})
    fresh = start(2, 4)
    driver.attach(first, fresh, inherits=driver.epoch)
    driver.restore(first, fresh, end, "copy")
    driver.rebuilt(fresh, end)
    np.testing.assert_array_equal(driver.step(1, end, rows(1, 99)), before)


def test_a_frame_that_is_missing_on_a_link_is_reported_at_once(world: tuple[Start, Driver]) -> None:
    start, driver = world
    first, last = start(0, 2), start(2, 4)
    driver.attach(first, last)
    converse(driver)
    driver._serial += 1
    next_step(driver)
    assert driver.hear(first) == FrameLost(driver.epoch, 0)


def fault_of(driver: Driver, stage: LiveStage) -> Fault:
    message: Message = driver.hear(stage)
    assert isinstance(message, Fault), message
    return message


def test_another_layout_is_a_fault_of_the_sequence(world: tuple[Start, Driver]) -> None:
    start, driver = world
    first, old, fresh = start(0, 2), start(2, 4, 8), start(2, 4)
    driver.attach(first, old)
    converse(driver)
    epoch = driver.epoch
    driver.attach(first, fresh, inherits=epoch)
    driver.restore(old, fresh, LENGTH, epoch=epoch)
    fault = fault_of(driver, fresh)
    assert (fault.epoch, fault.sequence) == (driver.epoch, 1)
    assert "and this stage has" in fault.reason
    assert driver.state(fresh).sequences == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stop": LENGTH + 9}, "holds 45 positions"),
        ({"sequence": 7}, "holds 0 positions"),
        ({"start_layer": 1}, "this stage has layers 2-3"),
        ({"what": "copy"}, "keeps no copies"),
    ],
)
def test_what_a_stage_does_not_hold_is_a_fault(
    world: tuple[Start, Driver], changes: dict[str, Any], reason: str
) -> None:
    start, driver = world
    first, old, fresh = start(0, 2), start(2, 4), start(2, 4)
    driver.attach(first, old)
    converse(driver)
    epoch = driver.epoch
    driver.attach(first, fresh, inherits=epoch)
    driver.restore(old, fresh, LENGTH, **{"epoch": epoch, **changes})
    fault = fault_of(driver, old)
    assert (fault.epoch, fault.sequence) == (epoch, changes.get("sequence", 1))
    assert reason in fault.reason


def test_a_stage_that_cannot_be_reached_is_a_fault(world: tuple[Start, Driver]) -> None:
    start, driver = world
    first, last = start(0, 2), start(2, 4)
    driver.attach(first, last)
    converse(driver)
    driver.push(last, first, LENGTH, start_layer=2, stop_layer=4, addresses="127.0.0.1:1")
    assert "cannot be reached" in fault_of(driver, last).reason
