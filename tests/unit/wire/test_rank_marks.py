"""Times of ranks in the header of a frame: packed, bounded, and what they tell of clocks."""

from __future__ import annotations

import pytest

from edgepp.wire.rank_marks import MAX_BYTES, RankMarks, ahead_of, num_times, packed_times, ranks_of, with_ranks

AHEAD_US = 5_000_000
FIRST = RankMarks(0, 0, 1000, (100, 300, 50, 40))
"""Ready at 1100 and 1450, with the sums at 1400 and 1490."""
OTHER = RankMarks(0, 1, AHEAD_US + 1010, (370, 40, 20))
"""Ready at 1380 and 1440 of rank 0's clock, with the first sum at 1420."""


def test_times_come_out_as_they_went_in_also_beside_those_of_another_stage() -> None:
    begun_us, times = packed_times([5_000_000, 5_100_000, 5_350_999])
    assert (begun_us, num_times(times)) == (5000, 2)
    marks = with_ranks(with_ranks(b"", 0, [(begun_us, times)] * 2, 1), 3, [(7, times)], 1)
    assert list(ranks_of(marks)) == [
        RankMarks(0, 0, 5000, (100, 250)),
        RankMarks(0, 1, 5000, (100, 250)),
        RankMarks(3, 0, 7, (100, 250)),
    ]


def test_long_times_have_a_coarser_unit() -> None:
    _, times = packed_times([0, 200_000_000_000, 200_000_500_000])
    ((_, _, _, took_us),) = ranks_of(with_ranks(b"", 0, [(0, times)], 1))
    assert took_us[0] == pytest.approx(200e6, rel=1e-4)
    assert took_us[1] <= 500


def test_ranks_for_which_a_header_has_no_room_are_left_out() -> None:
    one = packed_times(range(0, 400_000, 1000))
    assert with_ranks(b"", 0, [one, one], 1)
    assert with_ranks(b"kept", 0, [one, one, one], 1) == b"kept"
    assert with_ranks(b"kept", 0, [one, one], 100) == b"kept", "a batch of 100 rows is long already"
    assert len(with_ranks(b"", 0, [one, one], 1)) <= MAX_BYTES


@pytest.mark.parametrize("cut", [1, 13, 15, 20])
def test_marks_that_are_cut_off_are_read_up_to_there(cut: int) -> None:
    whole = with_ranks(b"", 0, [packed_times([0, 1000, 2000])] * 2, 1)
    assert len(list(ranks_of(whole[:cut]))) == (cut >= 18)
    assert list(ranks_of(b"\xff" * 40)) == []


@pytest.mark.parametrize("times", [b"", b"\0", b"\1\0\0"])
def test_bytes_that_are_no_times_are_told(times: bytes) -> None:
    assert num_times(times) == -1


def test_a_sum_ends_after_the_other_rank_has_sent_its_part_which_bounds_the_clocks() -> None:
    least_us, most_us = ahead_of(FIRST, OTHER) or (0, 0)
    assert (least_us - AHEAD_US, most_us - AHEAD_US) == (-20, 320)


def test_times_that_no_clock_explains_tell_nothing() -> None:
    assert ahead_of(FIRST, OTHER._replace(took_us=(0, 0, 100_000))) is None
    assert ahead_of(FIRST, OTHER._replace(took_us=())) is None
