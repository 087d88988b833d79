"""Present rates of the cluster: tokens per second, busy share of each stage, and parts of the time of a token.

All of it is the difference of two readings of the engine's sums. The coordinator's thread takes the readings; any
thread may ask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.engine.ring import StageInfo
from edgepp.engine.step_totals import StepSums

READING_S = 0.25
"""The time between two readings."""
WINDOW_S = 1.0
"""The time over which rates are means."""
TRAFFIC_S = 2.0
"""The same for bytes on links, which the stages report twice per second."""
HISTORY_S = 2.0
"""The time that one value of the history is the mean of."""
HISTORY_LENGTH = 150


@dataclass(frozen=True)
class _Reading:
    at_s: float
    sums: StepSums
    received_bytes: tuple[int, ...]
    """Per stage, what came over the link into it."""


class Rates:
    """Rates of the open pipeline, and the history of its tokens per second."""

    def __init__(self, pipeline_manager: PipelineManager) -> None:
        self._pipeline_manager = pipeline_manager
        self._readings: deque[_Reading] = deque(maxlen=1 + round(TRAFFIC_S / READING_S))
        self._stages: tuple[StageInfo, ...] = ()
        self._steps: tuple[StepSums, StepSums, tuple[StageInfo, ...]] | None = None
        """The sums before and after the newest steps, and their stages; None before the first step."""
        self._history: deque[float] = deque(maxlen=HISTORY_LENGTH)
        self._noted_s = 0.0
        """When the newest value of the history was noted."""
        self._tokens = 0
        """Tokens since then."""

    def tick(self, now_s: float) -> None:
        """Take a reading if one is due. Called periodically in the coordinator's thread, with monotonic seconds."""
        if self._readings and now_s - self._readings[-1].at_s < READING_S:
            return
        pipeline = self._pipeline_manager.pipeline
        if pipeline is None:
            self._readings.clear()
        else:
            stats = pipeline.engine.stage_stats
            reading = _Reading(now_s, pipeline.engine.step_sums, tuple(one.received_bytes for one in stats))
            if pipeline.stages != self._stages:
                self._readings.clear()
                self._stages, self._steps = pipeline.stages, None
            elif self._readings:
                self._tokens += max(0, reading.sums.tokens - self._readings[-1].sums.tokens)
            self._readings.append(reading)
            if (steps := self._new_steps()) is not None:
                self._steps = *steps, self._stages
        if now_s - self._noted_s >= HISTORY_S:
            if self._noted_s:
                self._history.append(round(self._tokens / (now_s - self._noted_s), 2))
            self._noted_s, self._tokens = now_s, 0

    def to_json(self) -> dict[str, Any]:
        """Rates per second over the last ``WINDOW_S``, and the tokens per second of the last minutes, oldest first."""
        first, last, span_s = self._window(WINDOW_S)
        return {
            "tokens_per_s": _rate(first.sums.tokens, last.sums.tokens, span_s) if first and last else 0.0,
            "prompt_tokens_per_s": (
                _rate(first.sums.prompt_positions, last.sums.prompt_positions, span_s) if first and last else 0.0
            ),
            "steps_per_s": _rate(first.sums.steps, last.sums.steps, span_s) if first and last else 0.0,
            "history": list(self._history),
            "history_step_s": HISTORY_S,
        }

    def busy(self, stage: int) -> float | None:
        """The share of its time, from 0 to 1, in which a stage has computed lately; None where it is not known."""
        first, last, span_s = self._window(WINDOW_S)
        if first is None or last is None or stage >= len(last.sums.busy_s):
            return None
        return round(min(1.0, _rate(first.sums.busy_s[stage], last.sums.busy_s[stage], span_s)), 3)

    def received_bytes_per_s(self, stage: int) -> float | None:
        """Bytes per second on the link into a stage lately; None where that is not known."""
        first, last, span_s = self._window(TRAFFIC_S)
        if first is None or last is None or stage >= len(last.received_bytes):
            return None
        return round(_rate(first.received_bytes[stage], last.received_bytes[stage], span_s))

    @property
    def trip(self) -> dict[str, Any] | None:
        """Mean seconds of the newest decode steps, by part (``trip_of``); None before the first step."""
        steps = self._steps
        return None if steps is None else {**trip_of(*steps), "live": self._new_steps() is not None}

    def _new_steps(self) -> tuple[StepSums, StepSums] | None:
        """The sums before and after the steps of the last ``WINDOW_S``; None where there was no step."""
        first, last, _ = self._window(WINDOW_S)
        if first is None or last is None or last.sums.steps <= first.sums.steps:
            return None
        return first.sums, last.sums

    def _window(self, span_s: float) -> tuple[_Reading | None, _Reading | None, float]:
        """The reading at the beginning of the last ``span_s`` seconds, the newest one, and the seconds between them."""
        readings = list(self._readings)
        if len(readings) < 2:
            return None, None, 0.0
        last = readings[-1]
        recent = [one for one in readings[:-1] if last.at_s - one.at_s <= span_s + READING_S / 2]
        first = recent[0] if recent else readings[-2]
        return first, last, last.at_s - first.at_s


def trip_of(before: StepSums, after: StepSums, stages: Sequence[StageInfo]) -> dict[str, Any]:
    """Mean seconds of the decode steps between two readings, by part: wire, queue, compute and head.

    ``wire_s`` of a stage is the link into it, with codec and sockets: what was neither computing nor waiting is
    divided by the measured ways.
    """
    steps = after.steps - before.steps
    compute_s = _means(before.compute_s, after.compute_s, steps)
    queue_s = _means(before.queue_s, after.queue_s, steps)
    ring_s = (after.ring_s - before.ring_s) / steps
    ways_s = [*(stage.hop_s - stage.back_s for stage in stages), stages[-1].back_s]
    rest_s, all_ways_s = max(0.0, ring_s - sum(compute_s) - sum(queue_s)), sum(ways_s)
    wire_s = [rest_s * (way_s / all_ways_s if all_ways_s else 1 / len(ways_s)) for way_s in ways_s]
    draws = after.draws - before.draws
    head_s = (after.head_s - before.head_s) / draws if draws else 0.0
    parts = zip(stages, wire_s, queue_s, compute_s, strict=False)
    return {
        "steps": steps,
        "tokens_per_step": round((after.tokens - before.tokens) / steps, 3),
        "step_s": round(ring_s + head_s, 6),
        "stages": [
            {"index": stage.index, "node": stage.node, "layers": [stage.layers.start, stage.layers.stop]}
            | {"wire_s": round(wire, 6), "queue_s": round(queue, 6), "compute_s": round(compute, 6)}
            for stage, wire, queue, compute in parts
        ],
        "return_s": round(wire_s[-1], 6),
        "head_s": round(head_s, 6),
    }


def _means(before: Sequence[float], after: Sequence[float], count: int) -> list[float]:
    return [max(0.0, b - a) / count for a, b in zip(before, after, strict=True)]


def _rate(before: float, after: float, span_s: float) -> float:
    return round(max(0.0, after - before) / span_s, 3) if span_s else 0.0
