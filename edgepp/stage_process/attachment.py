"""A ring from the side of one stage: its sender, its receiver, and the numbers of the frames on both links."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from edgepp.errors import RemoteProtocolError
from edgepp.stage_process.frames import Frame
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.frame_arrivals import FrameArrivals
from edgepp.wire.messages.control import Attach
from edgepp.wire.messages.data import Forward
from edgepp.wire.transport import Link

MAX_UNSENT_FRAMES = 64
"""Frames of one ring that may wait for the next stage."""


@dataclass(frozen=True)
class UnsentFrame:
    """A frame that the full queue of the next stage has not taken yet."""

    parts: list[bytes | memoryview]
    until_s: float
    """Monotonic time until which the frame may wait."""


@dataclass
class Attachment:
    """The ring of one epoch."""

    message: Attach
    control: bytes
    """Route of the coordinator's control connection."""
    next: Link | None
    """None for the last stage."""
    codec: CodecChoice
    unsent: deque[UnsentFrame] = field(default_factory=deque)
    """Oldest first."""
    arrivals: FrameArrivals = field(default_factory=FrameArrivals)
    """Frames of the previous stage."""
    _sent: int = 0

    @property
    def stage(self) -> int:
        """Number of this stage in the ring."""
        return self.message.stage

    @property
    def route(self) -> bytes:
        """Route of the coordinator's data connection, to which the last stage sends."""
        return bytes.fromhex(self.message.route)

    def next_serial(self) -> int:
        """Serial number of the next frame that this stage sends."""
        self._sent += 1
        return self._sent - 1

    def close(self) -> None:
        """Close the link to the next stage."""
        if self.next is not None:
            self.next.close()


def check_frame(ring: Attachment, frame: Frame, width: int, *, has_head: bool) -> None:
    """Check that a frame is for this stage of the ring, of the model's width, and asks for what the stage has.

    Raises:
        RemoteProtocolError: It is not.
    """
    if frame.width != width:
        raise RemoteProtocolError(f"a frame of width {frame.width} where the model has {width}")
    if frame.result != "hidden" and ring.next is None and not has_head:
        raise RemoteProtocolError(f"a frame that asks for {frame.result} of a stage without the output head")
    if isinstance(frame, Forward) and frame.until < ring.stage:
        raise RemoteProtocolError(f"a frame that ends at stage {frame.until} came to stage {ring.stage}")
