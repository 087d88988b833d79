"""Partial sums over pairs of sockets: sums longer than a socket takes, steps that fail half-way, ends that break."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.local_sums import FaultSeen, LocalSums, RankEnded

LONG = (1024, 2048)
"""Eight megabytes: more than a socket's buffers."""


@pytest.fixture
def ends() -> Iterator[tuple[LocalSums, LocalSums, socket.socket]]:
    """Both ends of a pair, and the socket of the second one."""
    first, second = socket.socketpair()
    sums = LocalSums({1: first}, awake=True), LocalSums({0: second}, awake=False)
    yield *sums, second
    for one in sums:
        one.close()


def frame(step: int, number: int, values: Array) -> bytes:
    return struct.pack("<qII", step, number, values.nbytes) + values.tobytes()


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def test_both_sides_get_what_the_other_sent_however_long_it_is(
    ends: tuple[LocalSums, LocalSums, socket.socket],
) -> None:
    first, second, _ = ends
    shapes = [(1, 8), LONG, (3, 5), LONG]
    got: list[Array] = []

    def other() -> None:
        for number, shape in enumerate(shapes):
            got.append(second.exchange(1, number, np.full(shape, number, np.float32))[0])

    thread = threading.Thread(target=other)
    thread.start()
    for number, shape in enumerate(shapes):
        found = first.exchange(1, number, np.full(shape, -number, np.float32))[1]
        np.testing.assert_array_equal(found, np.full(shape, number, np.float32))
    thread.join()
    for number, (shape, found) in enumerate(zip(shapes, got, strict=True)):
        np.testing.assert_array_equal(found, np.full(shape, -number, np.float32))


@pytest.mark.parametrize("came", [0, 1, 15, 16, 17, 400, 1040])
def test_frames_of_a_step_that_failed_are_passed_over(
    came: int, ends: tuple[LocalSums, LocalSums, socket.socket]
) -> None:
    first, _, raw = ends
    stale = frame(1, 1, ones(1, 256))
    raw.sendall(frame(1, 0, ones(1, 4)) + stale[:came])
    np.testing.assert_array_equal(first.exchange(1, 0, ones(1, 4))[1], ones(1, 4))
    first.fail(1)
    raw.sendall(stale[came:] + frame(1, 0xFFFFFFFF, ones(0)) + frame(2, 0, 3 * ones(2, 2)))
    np.testing.assert_array_equal(first.exchange(2, 0, ones(2, 2))[1], 3 * ones(2, 2))


def test_a_fault_ends_the_step_half_way_and_the_next_one_works(
    ends: tuple[LocalSums, LocalSums, socket.socket],
) -> None:
    first, second, _ = ends
    second.fail(4)
    with pytest.raises(FaultSeen):
        first.exchange(4, 0, ones(*LONG))  # of which the socket has taken a part
    thread = threading.Thread(target=first.exchange, args=(5, 0, ones(1, 4)))
    thread.start()
    np.testing.assert_array_equal(second.exchange(5, 0, 2 * ones(1, 4))[0], ones(1, 4))
    thread.join()


@pytest.mark.parametrize(
    "wrong",
    [frame(1, 1, ones(1, 4)), frame(2, 0, ones(1, 4)), frame(1, 0, ones(1, 5)), frame(1, 0, ones(1, 3))],
    ids=["number", "step", "long", "short"],
)
def test_another_sum_than_the_one_awaited_ends_the_pair(
    wrong: bytes, ends: tuple[LocalSums, LocalSums, socket.socket]
) -> None:
    first, _, raw = ends
    raw.sendall(wrong)
    with pytest.raises(RankEnded) as found:
        first.exchange(1, 0, ones(1, 4))
    assert found.value.problem


def test_an_end_that_closes_ends_the_pair(ends: tuple[LocalSums, LocalSums, socket.socket]) -> None:
    first, second, _ = ends
    second.close()
    with pytest.raises(RankEnded) as found:
        first.exchange(1, 0, ones(1, 4))
    assert not found.value.problem
    first.fail(1)
