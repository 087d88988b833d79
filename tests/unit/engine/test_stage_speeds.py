"""The speed of each stage, as the newest steps of answers show it."""

from __future__ import annotations

import pytest

from edgepp.engine.stage_speeds import StageSpeed, StageSpeeds


def test_nothing_is_known_before_some_steps() -> None:
    speeds = StageSpeeds(2, chunk=64)
    for _ in range(7):
        speeds.add(1, 100, (0.01, 0.02), decodes=True)
    speeds.add(31, 31, (0.1, 0.2), decodes=False)  # too short to show a rate
    assert speeds.read() == (StageSpeed(None, 0, None),) * 2
    assert speeds.read()[0].to_json() == {}


def test_the_newest_steps_count_and_a_pause_of_the_machine_does_not() -> None:
    speeds = StageSpeeds(2, chunk=64)
    for position in range(200):
        speeds.add(1, position, (0.05, 0.08) if position < 100 else (0.01, 0.02), decodes=True)
    speeds.add(1, 200, (9.0, 0.02), decodes=True)
    speeds.add(4, 200, (1.0, 1.0), decodes=True)  # guesses in one step
    for rows, seconds in (*[(64, (0.64, 1.28)), (40, (0.4, 0.8))] * 8, (64, (5.0, 5.0))):
        speeds.add(rows, rows, seconds, decodes=False)
    one, other = speeds.read()
    assert (one.decode_s, other.decode_s) == (0.01, 0.02)
    assert one.position == other.position == 168  # of the positions 137 to 200
    assert one.prefill_s == pytest.approx(0.01)
    assert other.to_json() == {"decode_s": 0.02, "decode_position": 168, "prefill_tokens_per_s": 50.0}
