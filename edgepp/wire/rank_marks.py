"""When the ranks of a stage worked on a traced frame: times that travel in the frame's header, as bytes. Pure.

A layer has two halves, and each half ends with a sum over all ranks. A rank notes when it has begun, and in turn how
long each half and each sum took: the sum is the wait for the other ranks, with the way of their partial sums. Another
rank than rank 0 tells its times before the last sum, so that rank 0 has them when the step ends, and no step waits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

MAX_BYTES = 2048
"""Bytes of all ranks of all stages in one header: the greatest length of ``RankTimes``."""
_ROW_BYTES = 14
"""Bytes by which each row of a batch makes the header longer, and the room for these times shorter."""
_HEAD = struct.Struct("<BBHHQ")
_NUMBER = np.dtype("<u2")
_MOST = (1 << 16) - 1


class RankMarks(NamedTuple):
    """The times of one rank of a stage in one step."""

    stage: int
    rank: int
    begun_us: int
    """When the rank began, in microseconds of its own clock."""
    took_us: tuple[int, ...]
    """Microseconds of the first half, the first sum, the second half, and so on."""

    @property
    def ends_us(self) -> tuple[int, ...]:
        """When each half and each sum ended, by the rank's clock."""
        return tuple(int(at_us) for at_us in self.begun_us + np.cumsum(self.took_us, dtype=np.int64))


def packed_times(times_ns: Sequence[int]) -> tuple[int, bytes]:
    """Microseconds of the first of the ``times_ns``, and the times between them as bytes.

    The bytes are a unit in microseconds, and the times in this unit, each as an unsigned number of 16 bits.
    """
    took_us = [(end - begin) // 1000 for begin, end in pairwise(times_ns)]
    unit = min(_MOST, 1 + max(took_us, default=0) // _MOST)
    if unit > 1:
        took_us = [min(_MOST, took // unit) for took in took_us]
    return times_ns[0] // 1000, struct.pack(f"<H{len(took_us)}H", unit, *took_us)


def num_times(times: bytes) -> int:
    """How many times ``packed_times`` packed; -1 for bytes that it cannot have made."""
    return -1 if len(times) < 2 or len(times) % 2 else len(times) // 2 - 1


def with_ranks(marks: bytes, stage: int, ranks: Sequence[tuple[int, bytes]], rows: int) -> bytes:
    """``marks`` of a frame of ``rows`` sequences, with those of the ranks of one more stage, in rank order.

    ``ranks`` are as ``packed_times`` makes them. Where a header has no room for all of them, nothing is added.
    """
    found = bytearray(marks)
    for rank, (begun_us, times) in enumerate(ranks):
        found += _HEAD.pack(stage, rank, num_times(times), int.from_bytes(times[:2], "little"), begun_us) + times[2:]
    return bytes(found) if len(found) + _ROW_BYTES * rows <= MAX_BYTES else marks


def ranks_of(marks: bytes) -> Iterator[RankMarks]:
    """The times of each rank, up to the first that is malformed."""
    at = 0
    while at + _HEAD.size <= len(marks):
        stage, rank, count, unit, begun_us = _HEAD.unpack_from(marks, at)
        at += _HEAD.size
        if at + count * _NUMBER.itemsize > len(marks) or begun_us >= 1 << 62:
            return
        took = np.frombuffer(marks, _NUMBER, count, at).astype(np.int64) * unit
        at += count * _NUMBER.itemsize
        yield RankMarks(stage, rank, begun_us, tuple(took.tolist()))


def ahead_of(first: RankMarks, other: RankMarks) -> tuple[int, int] | None:
    """Microseconds by which the clock of a rank is ahead of rank 0's: at least, and at most.

    No rank has a sum before the other one has sent its part. None where the times contradict that.
    """
    one, two = first.ends_us, other.ends_us
    least = max((b - a for a, b in zip(one[1::2], two[0::2], strict=False)), default=None)
    most = min((b - a for a, b in zip(one[0::2], two[1::2], strict=False)), default=None)
    if least is None or most is None:
        return None
    rounding = len(one) * (2 + (max(first.took_us) + max(other.took_us)) // _MOST)
    return None if least > most + rounding else (min(least, most), max(least, most))
