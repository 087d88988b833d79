"""``timings``: what they tell of losses of stages."""

from __future__ import annotations

from edgepp.engine.timing import Recovery
from edgepp.http_api.answer_events import total
from edgepp.http_api.generation import Usage
from edgepp.http_api.openai_api.completions import summed
from edgepp.http_api.openai_api.usage import timings

LOST, UNHURT = Usage(3, 0, 5, recoveries=(Recovery("prefill", 1.25, 90), Recovery("copies", 0.5))), Usage(3, 0, 5)


def test_timings_name_each_recovery_and_the_pause_of_the_text() -> None:
    expected = [
        {"how": "prefill", "pause_ms": 1250.0, "prefilled_n": 90},
        {"how": "copies", "pause_ms": 500.0, "prefilled_n": 0},
    ]
    assert timings(LOST)["recoveries"] == expected
    assert timings(total([UNHURT, LOST]))["recoveries"] == expected
    assert timings(summed([UNHURT, LOST]))["recoveries"] == expected


def test_an_answer_that_lost_nothing_tells_of_no_recoveries() -> None:
    assert "recoveries" not in timings(UNHURT)
