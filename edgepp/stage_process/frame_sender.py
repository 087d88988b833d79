"""Sending of results: to the next stage, to the coordinator, or nowhere where a frame ends at this stage."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.attachment import MAX_UNSENT_FRAMES, Attachment, UnsentFrame
from edgepp.stage_process.boundary_log import BoundaryLog
from edgepp.stage_process.compute_status import ComputeStatus
from edgepp.stage_process.frames import Frame, answer_to, spans_of
from edgepp.stage_process.next_stage import Reply
from edgepp.wire import codec
from edgepp.wire.frame_marks import encoded
from edgepp.wire.mailbox import Mailbox
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.data import REPLAYED, Forward
from edgepp.wire.messages.recovery import Rebuilt
from edgepp.wire.transport import Listener

SEND_WAIT_S = 1.0
"""How long a frame waits for a next stage whose queue is full; other rings go on meanwhile."""


class FrameSender:
    """Sends the frames of all rings. Belongs to the compute thread."""

    def __init__(
        self,
        data: Listener,
        status: ComputeStatus,
        boundary_log: BoundaryLog,
        outbox: Mailbox[Reply],
        on_unreachable: Callable[[Attachment], None],
    ) -> None:
        """``on_unreachable`` is called for each frame that the next stage does not take."""
        self._data = data
        self._status = status
        self._boundary_log = boundary_log
        self._outbox = outbox
        self._on_unreachable = on_unreachable
        self._congested: dict[int, Attachment] = {}
        """Rings with unsent frames, by epoch."""

    @property
    def is_congested(self) -> bool:
        """Whether frames wait for a next stage."""
        return bool(self._congested)

    def send_result(self, ring: Attachment, frame: Frame, hidden: Array) -> None:
        """Send the result of a frame on unless the frame ends here, then log it where there is a next stage."""
        if isinstance(frame, Forward) and _ends_here(ring, frame):
            rebuilt = Rebuilt(frame.epoch, frame.sequence, frame.position + frame.rows)
            self._outbox.put((ring.control, rebuilt))
        elif ring.next is not None:
            self.pass_on(ring, frame, hidden)
        else:
            self._answer(ring, frame, hidden)
        if ring.next is not None:
            self._record(frame, hidden)

    def pass_on(self, ring: Attachment, frame: Frame, hidden: Array) -> int:
        """Send a frame to the next stage, or queue it where the stage is slow; returns the bytes of its tensor."""
        name, tensor = ring.codec.encode(hidden)
        trace = encoded(frame.trace) if frame.trace else ()
        header = frame._replace(codec=name, serial=ring.next_serial(), checksum=codec.checksum(tensor), trace=trace)
        parts = [encode(header), *tensor]
        if ring.unsent or ring.next is None or not ring.next.send(parts):
            if len(ring.unsent) >= MAX_UNSENT_FRAMES:
                self._on_unreachable(ring)
            else:
                ring.unsent.append(UnsentFrame(parts, time.monotonic() + SEND_WAIT_S))
                self._congested[frame.epoch] = ring
        return sum(map(len, tensor))

    def retry_unsent(self) -> None:
        """Try to send the unsent frames of all rings again, without waiting."""
        now_s = time.monotonic()
        for epoch, ring in list(self._congested.items()):
            while ring.unsent:
                first = ring.unsent[0]
                if ring.next is None or ring.next.send(first.parts):
                    ring.unsent.popleft()
                elif now_s > first.until_s:
                    ring.unsent.popleft()
                    self._on_unreachable(ring)
                else:
                    break
            if not ring.unsent:
                del self._congested[epoch]

    def forget(self, epoch: int) -> int:
        """Discard the unsent frames of an epoch; returns their number."""
        ring = self._congested.pop(epoch, None)
        return 0 if ring is None else len(ring.unsent)

    def _record(self, frame: Frame, hidden: Array) -> None:
        start = 0
        for sequence, position, rows in spans_of(frame):
            self._boundary_log.record((frame.epoch, sequence), position, hidden[start : start + rows])
            start += rows

    def _answer(self, ring: Attachment, frame: Frame, hidden: Array) -> None:
        answer, wanted = answer_to(frame, hidden)
        # A codec may be lossy, and what does not shrink is not worth trying: noise in the low bits of each logit.
        name, tensor = ring.codec.encode(wanted) if frame.result == "hidden" else ("none", codec.encode(wanted, "none"))
        trace = encoded(frame.trace) if frame.trace else ()
        header = answer._replace(codec=name, serial=ring.next_serial(), checksum=codec.checksum(tensor), trace=trace)
        if not self._data.send(ring.route, [encode(header), *tensor]):
            self._status.drop("the coordinator's data connection is closed")


def _ends_here(ring: Attachment, frame: Forward) -> bool:
    """Whether the coordinator waits for a ``Rebuilt`` of this stage, and for no result."""
    return frame.step == REPLAYED if ring.next is None else frame.until == ring.stage
