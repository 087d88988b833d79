"""Lanes of the ONNX backend: where sequences are placed, and the memory that they take and give back."""

from __future__ import annotations

import psutil
import pytest

from edgepp.backend.onnx.kv_arena import CacheShape
from edgepp.backend.onnx.kv_cache import CachedSequence, LaneAllocator
from edgepp.layer_range import LayerRange

pytestmark = pytest.mark.usefixtures("small_lanes")

SHAPE = CacheShape(LayerRange(0, 2), 2, 16)


def lanes(allocator: LaneAllocator, batch: list[CachedSequence]) -> list[list[int]]:
    """The lanes of each run of the batch; every sequence is then longer by one position."""
    for sequence in batch:
        allocator.reserve(sequence, sequence.length + 1)
    runs = allocator.runs(batch)
    for sequence in batch:
        sequence.length += 1
    return [list(range(run.first, run.first + len(run.sequences))) for run in runs]


def test_a_hole_is_filled_when_the_batch_comes_again() -> None:
    allocator = LaneAllocator(SHAPE)
    a, b, c, d = (allocator.open(8) for _ in range(4))
    assert lanes(allocator, [a, b, c, d]) == [[0, 1, 2, 3]]
    allocator.free(b)
    assert lanes(allocator, [a, c, d]) == [[0], [2, 3]]
    assert lanes(allocator, [d, c, a]) == [[0, 1, 2]]
    e = allocator.open(8)
    assert lanes(allocator, [a, c, d, e]) == [[0, 1, 2, 3]]


def test_a_batch_that_comes_once_is_not_moved() -> None:
    allocator = LaneAllocator(SHAPE)
    sequences = [allocator.open(8) for _ in range(4)]
    for _ in range(3):
        assert lanes(allocator, sequences[::2]) == [[0], [2]]
        assert lanes(allocator, [sequences[0], sequences[3]]) == [[0], [3]]


def test_two_batches_that_take_turns_are_gathered_apart() -> None:
    allocator = LaneAllocator(SHAPE)
    sequences = [allocator.open(16) for _ in range(4)]
    for _ in range(4):
        runs_of_halves = [lanes(allocator, half) for half in (sequences[::2], sequences[1::2])]
    assert [len(runs) for runs in runs_of_halves] == [1, 1]


def test_a_short_sequence_joins_a_long_one_in_its_arena() -> None:
    allocator = LaneAllocator(SHAPE)
    long, short = allocator.open(99), allocator.open(99)
    allocator.reserve(long, 40)
    long.length = 40
    assert len(lanes(allocator, [long, short])) == 2
    assert len(lanes(allocator, [long, short])) == 1
    assert short.arena is long.arena
    assert allocator.nbytes == SHAPE.resident_bytes(long.length) + SHAPE.resident_bytes(short.length)


def test_more_sequences_than_an_arena_has_lanes_are_computed_in_pieces() -> None:
    allocator = LaneAllocator(SHAPE)
    sequences = [allocator.open(99) for _ in range(9)]
    for _ in range(12):
        runs = lanes(allocator, sequences)
    assert [len(run) for run in runs] == [4, 4, 1]


def test_memory_of_a_freed_sequence_goes_back_and_its_lane_is_used_again() -> None:
    allocator = LaneAllocator(CacheShape(LayerRange(0, 1), 2, 1 << 16))
    process = psutil.Process()
    first, other = allocator.open(16), allocator.open(16)
    before = process.memory_info().rss
    allocator.reserve(first, 16)
    for memory in first.arena.memory.values():
        memory[first.lane] = 1.0
    assert allocator.nbytes == 16 << 20
    assert process.memory_info().rss - before > 15 << 20
    allocator.free(first)
    assert allocator.nbytes == 0
    assert allocator.open(16).lane == 0
    assert other.lane == 1
    if psutil.LINUX:  # other systems take it when they need it
        assert process.memory_info().rss - before < 4 << 20


def test_memory_beyond_a_smaller_capacity_goes_back() -> None:
    allocator = LaneAllocator(CacheShape(LayerRange(0, 1), 2, 1 << 16))
    process = psutil.Process()
    sequence, beside = allocator.open(16), allocator.open(16)
    for one in (sequence, beside):
        allocator.reserve(one, 16)
        for memory in one.arena.memory.values():
            memory[one.lane] = 1.0
    before = process.memory_info().rss
    allocator.resize(sequence, 3)
    assert allocator.nbytes == (16 << 20) + (3 << 20)
    if psutil.LINUX:
        assert before - process.memory_info().rss > 12 << 20
    for memory in sequence.arena.memory.values():
        assert (memory[sequence.lane, :, :3] == 1).all()
        assert (memory[beside.lane] == 1).all()


def test_a_fork_lies_where_its_next_position_fits() -> None:
    allocator = LaneAllocator(SHAPE)
    source = allocator.open(99)
    allocator.reserve(source, 40)
    source.length = 40
    for memory in source.arena.memory.values():
        memory[source.lane] = 2.0
    for length, capacity, stride in ((3, 99, 16), (16, 99, 64), (16, 16, 16), (40, 99, 64)):
        fork = allocator.fork(source, length, capacity)
        assert (fork.length, fork.capacity, fork.arena.stride) == (length, capacity, stride)
        for memory in fork.arena.memory.values():
            assert (memory[fork.lane, :, :length] == 2).all()
            assert not memory[fork.lane, :, length:].any()
        assert allocator.nbytes == SHAPE.resident_bytes(40) + SHAPE.resident_bytes(length)
        allocator.free(fork)
