"""Steps as frames: the header that carries a step to the stages, and the event of what the last stage answers."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from edgepp.engine.ring import Returned, Send, SendBatch, StageInfo
from edgepp.errors import RemoteProtocolError
from edgepp.model.weights.checkpoint import Array
from edgepp.tracing.clock_offset import ClockOffset
from edgepp.tracing.request_trace import TracedRing, TracedStage
from edgepp.wire import codec
from edgepp.wire.field_types import Codec
from edgepp.wire.frame_marks import MAX_TRACED_STAGES, is_whole
from edgepp.wire.messages.data import Batch, Forward, Hidden


def frame_of(step: Send | SendBatch, epoch: int, number: int, codec_name: Codec, until: int) -> Forward | Batch:
    """The header of the frame that carries a step, which is followed by the step's hidden states.

    ``number`` is that of the step and of the frame on its link; ``until`` the last stage that computes a ``Send``.
    """
    width, dtype = step.hidden.shape[1], codec.dtype_name(step.hidden.dtype)
    trace = (int(step.trace.sent_s * 1e6),) if step.trace is not None and step.trace.ring is not None else ()
    if isinstance(step, SendBatch):
        batch = Batch(
            epoch, number, step.sequences, step.positions, width, dtype, codec_name, (), serial=number, trace=trace
        )
        return batch._replace(result=step.result.form, candidates=step.result.candidates)
    return Forward(
        epoch=epoch,
        sequence=step.sequence,
        step=number,
        position=step.position,
        capacity=step.capacity,
        source=step.source,
        wanted_rows=step.want,
        rows=len(step.hidden),
        width=width,
        dtype=dtype,
        codec=codec_name,
        compute_us=(),
        until=until,
        serial=number,
        result=step.result.form,
        candidates=step.result.candidates,
        trace=trace,
        request=step.request,
    )


def returned_rows(
    answer: Hidden | Batch, tensor: Sequence[memoryview], step: Send | SendBatch, width: int, *, stages: int
) -> Array:
    """The rows (W, ``width``) of the ``answer`` to ``step`` by the last of so many ``stages``.

    Raises:
        RemoteProtocolError: the answer has another shape, type or checksum.
    """
    if answer.width != width or len(answer.compute_us) != stages or not is_whole(answer.trace, stages):
        raise RemoteProtocolError("a result of another shape than was asked for")
    codec.check(tensor, answer.checksum)
    rows = codec.decode(tensor, answer.rows, width, answer.dtype, answer.codec)
    if step.result.form != "hidden" and rows.dtype != np.float32:
        raise RemoteProtocolError("logits or candidates that are not float32")
    return rows


def returned(answer: Hidden | Batch, rows: Array, step: Send | SendBatch, ring_s: float, received_s: float) -> Returned:
    """The event for a stage's ``answer`` to ``step``, which came at ``received_s`` and is decoded now.

    The stages say how long they computed: together at most the ``ring_s`` seconds for which the step was away.
    """
    stated_s = sum(answer.compute_us) / 1e6
    scale = 1e-6 if stated_s <= ring_s else 1e-6 * ring_s / stated_s
    compute_s = tuple(us * scale for us in answer.compute_us)
    sequences = answer.sequences if isinstance(answer, Batch) else (answer.sequence,)
    if step.trace is not None:
        step.trace.marks, step.trace.rank_marks = answer.trace, answer.ranks
        step.trace.received_s, step.trace.back_s = received_s, time.perf_counter()
    return Returned(sequences, step.positions_each, rows, compute_s, ring_s, step.result)


def traced_ring(stages: Sequence[StageInfo], clocks: Sequence[ClockOffset | None]) -> TracedRing | None:
    """The stages of a ring, and their clocks, for traces; None where they are too many for the header of a frame."""
    if len(stages) > MAX_TRACED_STAGES:
        return None
    return TracedRing(tuple(TracedStage(one.node, str(one.layers), one.pid) for one in stages), tuple(clocks))
