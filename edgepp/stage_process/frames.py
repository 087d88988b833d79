"""Frames that carry a step through the stages: their sequences and rows, and the answer to one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from edgepp.model.weights.checkpoint import Array
from edgepp.wire.messages.data import Batch, Forward, Hidden

Frame: TypeAlias = Forward | Batch
Answer: TypeAlias = Hidden | Batch


def select_rows(frame: Batch, rows: list[int]) -> Batch:
    """``frame`` with only these of its rows."""
    if len(rows) == frame.rows:
        return frame
    sequences = tuple(frame.sequences[row] for row in rows)
    return frame._replace(sequences=sequences, positions=tuple(frame.positions[row] for row in rows))


def sequences_of(frame: Frame) -> tuple[int, ...]:
    """Sequences of a frame."""
    return frame.sequences if isinstance(frame, Batch) else (frame.sequence,)


def spans_of(frame: Frame) -> Iterator[tuple[int, int, int]]:
    """Sequence, first position and number of positions of each part of a frame, in the order of its rows."""
    if isinstance(frame, Batch):
        for sequence, position in zip(frame.sequences, frame.positions, strict=True):
            yield sequence, position, 1
    else:
        yield frame.sequence, frame.position, frame.rows


def answer_to(frame: Frame, hidden: Array) -> tuple[Answer, Array]:
    """Message and rows that the last stage returns: all rows of a ``Batch``, or the wanted rows of a ``Forward``."""
    if isinstance(frame, Batch):
        return frame._replace(width=hidden.shape[1]), hidden
    wanted = hidden[len(hidden) - frame.wanted_rows :]
    width = hidden.shape[1]
    answer = Hidden(
        frame.epoch,
        frame.sequence,
        frame.step,
        len(wanted),
        width,
        frame.dtype,
        frame.codec,
        frame.compute_us,
        trace=frame.trace,
        ranks=frame.ranks,
    )
    return answer, wanted
