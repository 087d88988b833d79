"""Layer ranges: half-open in code and messages, inclusive where people read and write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgepp.errors import PlanError, UsageError


@dataclass(frozen=True, order=True)
class LayerRange:
    """Decoder layers ``[start, stop)``, counted from 0; never empty."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise UsageError(
                f"layers {self.start} to {self.stop - 1} are not a range",
                "give a first layer from 0 and a last one not before it",
            )

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    def __str__(self) -> str:
        """The inclusive form: ``0-15``, or ``7`` for one layer."""
        return f"{self.start}-{self.stop - 1}" if len(self) > 1 else str(self.start)

    @classmethod
    def parse(cls, text: str) -> LayerRange:
        """Parse the inclusive form, ``0-15`` or ``7``.

        Raises:
            UsageError: the text is not such a range.
        """
        match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", text)
        if match is None:
            raise UsageError(f"'{text}' is not a layer range", "write the first and last layer, like 0-15")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if last < first:
            raise UsageError(f"layer range {text} runs backwards", f"did you mean {last}-{first}?")
        return cls(first, last + 1)


def check_tiling(ranges: Sequence[LayerRange], num_layers: int) -> None:
    """Check that ranges cover layers ``[0, num_layers)`` exactly once, in any order.

    Raises:
        PlanError: the ranges have gaps or overlaps, or exceed the model; the message names each.
    """
    ordered = sorted(ranges)
    faults: list[str] = []
    covered = 0
    for layers in ordered:
        if layers.start > covered:
            faults.append(f"{_are(covered, layers.start)} missing")
        elif layers.start < covered:
            faults.append(f"{_are(layers.start, min(covered, layers.stop))} held twice")
        covered = max(covered, layers.stop)
    if covered < num_layers:
        faults.append(f"{_are(covered, num_layers)} missing")
    if covered > num_layers:
        faults.append(f"the model has only layers {LayerRange(0, num_layers)}")
    if faults:
        held = ", ".join(map(str, ordered)) or "none"
        raise PlanError(
            f"the stages do not cover each layer of the model once: {'; '.join(faults)} (held: {held})",
            "start `edgepp join --layers A-B` so that the ranges follow each other without gaps",
        )


def _are(start: int, stop: int) -> str:
    return f"layers {start}-{stop - 1} are" if stop - start > 1 else f"layer {start} is"


def split_evenly(num_layers: int, stages: int, head: float = 0.0) -> tuple[LayerRange, ...]:
    """Split ``num_layers`` layers into ``stages`` ranges, in order, of lengths that differ by one at most.

    The last range is shorter by the part of ``head`` layers that makes all ranges equal with these behind it.

    Raises:
        PlanError: ``stages`` is not from 1 to ``num_layers``.
    """
    if not 1 <= stages <= num_layers:
        raise PlanError(f"{num_layers} layers cannot be split over {stages} stages", f"use 1 to {num_layers} stages")
    cuts = [min(int((num_layers + head) * i / stages), num_layers - stages + i) for i in range(stages)] + [num_layers]
    return tuple(LayerRange(a, b) for a, b in pairwise(cuts))
