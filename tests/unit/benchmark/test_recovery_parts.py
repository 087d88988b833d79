"""How ``bench.recovery`` splits a pause by what the processes noted."""

from __future__ import annotations

import pytest

from bench.faults.interruptions import parts

LOSS = [
    (0.5, "load reported"),
    (10.2, "suspended"),
    (11.0, "load reported"),
    (11.1, "opening"),
    (11.3, "joined"),
    (11.7, "resumed"),
    (13.0, "suspended"),
]


def test_the_parts_of_a_loss_follow_each_other() -> None:
    found = parts(LOSS, 10.0, 12.0)
    assert list(found.values()) == pytest.approx([0.2, 0.8, 0.1, 0.2, 0.4, 0.3])
    assert sum(found.values()) == pytest.approx(2.0)


def test_what_happened_before_the_pause_of_a_drain_is_no_part_of_it() -> None:
    marks = [(8.0, "load reported"), (9.9, "opening"), (10.1, "suspended"), (10.4, "joined"), (10.5, "resumed")]
    found = parts(marks, 10.0, 10.6)
    assert found["loading_s"] == found["opening_s"] == 0.0
    assert sum(found.values()) == pytest.approx(0.6)
