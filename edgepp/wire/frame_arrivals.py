"""Serial numbers of the frames that arrive over one link, by which a receiver knows at once that a frame was lost."""

from __future__ import annotations

from edgepp.errors import RemoteProtocolError


class FrameArrivals:
    """The frames of one epoch on one link, whose sender numbers them from 0."""

    def __init__(self) -> None:
        self.next_serial = 0
        """Serial number of the next frame."""

    def arrived(self, serial: int) -> bool:
        """Note the arrival of the frame ``serial``; whether frames before it are missing.

        Raises:
            RemoteProtocolError: The frame, or a later one, has arrived before.
        """
        if serial < self.next_serial:
            raise RemoteProtocolError(f"frame {serial} came after frame {self.next_serial - 1} of the same link")
        missing = serial > self.next_serial
        self.next_serial = serial + 1
        return missing
