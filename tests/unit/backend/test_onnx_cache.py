"""Where the ONNX backend puts sequences, and what memory they take and give back."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from edgepp.backend.onnx import kv_arena as onnx_arena
from edgepp.backend.onnx import kv_cache as onnx_cache
from edgepp.backend.onnx.kv_arena import CacheShape
from edgepp.backend.onnx.kv_cache import CachedSequence, SequenceCaches
from edgepp.layers import LayerRange


@pytest.fixture(scope="module", autouse=True)
def _small_lanes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_cache, "FIRST_POSITIONS", 16)
        patch.setattr(onnx_cache, "_MOVED_BYTES", 1)
        patch.setattr(onnx_arena, "LANES", 4)
        yield


SHAPE = CacheShape(LayerRange(0, 2), 2, 16)


def lanes(caches: SequenceCaches, batch: list[CachedSequence]) -> list[list[int]]:
    """The batch's runs as lanes; each of its sequences is one position longer afterwards."""
    for place in batch:
        caches.reserve(place, place.length + 1)
    runs = caches.runs(batch)
    for place in batch:
        place.length += 1
    return [list(range(run.first, run.first + len(run.places))) for run in runs]


def test_a_hole_is_filled_when_the_batch_comes_again() -> None:
    caches = SequenceCaches(SHAPE)
    a, b, c, d = (caches.open(8) for _ in range(4))
    assert lanes(caches, [a, b, c, d]) == [[0, 1, 2, 3]]
    caches.free(b)
    assert lanes(caches, [a, c, d]) == [[0], [2, 3]]
    assert lanes(caches, [d, c, a]) == [[0, 1, 2]]
    e = caches.open(8)
    assert lanes(caches, [a, c, d, e]) == [[0, 1, 2, 3]]


def test_a_batch_that_comes_once_is_not_moved() -> None:
    caches = SequenceCaches(SHAPE)
    places = [caches.open(8) for _ in range(4)]
    for _ in range(3):
        assert lanes(caches, places[::2]) == [[0], [2]]
        assert lanes(caches, [places[0], places[3]]) == [[0], [3]]


def test_two_batches_that_take_turns_come_to_lie_apart() -> None:
    caches = SequenceCaches(SHAPE)
    places = [caches.open(16) for _ in range(4)]
    for _ in range(4):
        ends = [lanes(caches, half) for half in (places[::2], places[1::2])]
    assert [len(runs) for runs in ends] == [1, 1]


def test_a_short_sequence_joins_a_long_one_in_its_arena() -> None:
    caches = SequenceCaches(SHAPE)
    long, short = caches.open(99), caches.open(99)
    caches.reserve(long, 40)
    long.length = 40
    assert len(lanes(caches, [long, short])) == 2
    assert len(lanes(caches, [long, short])) == 1
    assert short.arena is long.arena
    assert caches.nbytes == SHAPE.resident_bytes(long.length) + SHAPE.resident_bytes(short.length)


def test_more_sequences_than_an_arena_has_slots_are_computed_in_pieces() -> None:
    caches = SequenceCaches(SHAPE)
    places = [caches.open(99) for _ in range(9)]
    for _ in range(12):
        runs = lanes(caches, places)
    assert [len(run) for run in runs] == [4, 4, 1]


def test_memory_of_a_freed_sequence_goes_back_and_its_slot_is_used_again() -> None:
    caches = SequenceCaches(CacheShape(LayerRange(0, 1), 2, 1 << 16))
    process = psutil.Process()
    first, other = caches.open(16), caches.open(16)
    before = process.memory_info().rss
    caches.reserve(first, 16)
    for memory in first.arena.memory.values():
        memory[first.lane] = 1.0
    assert caches.nbytes == 16 << 20
    assert process.memory_info().rss - before > 15 << 20
    caches.free(first)
    assert caches.nbytes == 0
    assert caches.open(16).lane == 0
    assert other.lane == 1
    if psutil.LINUX:  # other systems take it when they need it
        assert process.memory_info().rss - before < 4 << 20


def test_memory_beyond_a_smaller_capacity_goes_back() -> None:
    caches = SequenceCaches(CacheShape(LayerRange(0, 1), 2, 1 << 16))
    process = psutil.Process()
    place, beside = caches.open(16), caches.open(16)
    for one in (place, beside):
        caches.reserve(one, 16)
        for memory in one.arena.memory.values():
            memory[one.lane] = 1.0
    before = process.memory_info().rss
    caches.resize(place, 3)
    assert caches.nbytes == (16 << 20) + (3 << 20)
    if psutil.LINUX:
        assert before - process.memory_info().rss > 12 << 20
    for memory in place.arena.memory.values():
        assert (memory[place.lane, :, :3] == 1).all()
        assert (memory[beside.lane] == 1).all()


def test_a_fork_lies_where_its_next_position_fits() -> None:
    caches = SequenceCaches(SHAPE)
    source = caches.open(99)
    caches.reserve(source, 40)
    source.length = 40
    for memory in source.arena.memory.values():
        memory[source.lane] = 2.0
    for length, capacity, stride in ((3, 99, 16), (16, 99, 64), (16, 16, 16), (40, 99, 64)):
        fork = caches.fork(source, length, capacity)
        assert (fork.length, fork.capacity, fork.arena.stride) == (length, capacity, stride)
        for memory in fork.arena.memory.values():
            assert (memory[fork.lane, :, :length] == 2).all()
            assert not memory[fork.lane, :, length:].any()
        assert caches.nbytes == SHAPE.resident_bytes(40) + SHAPE.resident_bytes(length)
        caches.free(fork)
