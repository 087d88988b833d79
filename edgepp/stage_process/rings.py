"""The rings that a stage is part of: joined, inherited by the ring that replaces them, and left."""

from __future__ import annotations

from edgepp.errors import RemoteProtocolError
from edgepp.stage_process.attachment import Attachment
from edgepp.stage_process.bulk_work import BulkWork
from edgepp.stage_process.compute_status import ComputeStatus
from edgepp.stage_process.frame_sender import FrameSender
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.next_stage import NextStageLink, Reply
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.mailbox import Mailbox
from edgepp.wire.messages.control import Attach, Attached


class Rings:
    """The rings of a stage by epoch, and what else of the stage belongs to a ring. Belongs to the compute thread."""

    def __init__(
        self,
        runner: ModelRunner,
        sender: FrameSender,
        bulk: BulkWork,
        status: ComputeStatus,
        outbox: Mailbox[Reply],
    ) -> None:
        """``outbox`` takes the messages for the coordinator."""
        self.by_epoch: dict[int, Attachment] = {}
        self._runner = runner
        self._sender = sender
        self._bulk = bulk
        self._status = status
        self._outbox = outbox

    def __getitem__(self, epoch: int) -> Attachment:
        """The ring with the epoch ``epoch``.

        Raises:
            RemoteProtocolError: There is none.
        """
        if (ring := self.by_epoch.get(epoch)) is None:
            raise RemoteProtocolError(f"a message of the unknown epoch {epoch}")
        return ring

    def attach(self, next_stage: NextStageLink) -> None:
        """Join a ring whose next stage is connected, and tell the coordinator so, and which sequences are held."""
        attempt, link, message = next_stage.attempt, next_stage.link, next_stage.attempt.message
        if attempt.given_up:
            if link is not None:
                link.close()
            return
        self.detach(message.epoch)
        if link is not None:
            link.traffic = self._status.traffic
        if message.inherits:
            self._inherit(message)
        bytes_per_s = next_stage.bytes_per_s if link is not None else message.return_bytes_per_s
        choice = CodecChoice(message.codec, bytes_per_s)
        ring = self.by_epoch[message.epoch] = Attachment(message, attempt.control, link, choice)
        self._bulk.attach(ring, bytes_per_s)
        self.tell_inventory(message.epoch)
        self._outbox.put(
            (attempt.control, Attached(message.epoch, int(next_stage.echo_s * 1e6), next_stage.bytes_per_s))
        )

    def tell_inventory(self, epoch: int) -> None:
        """Tell the coordinator which sequences of a ring the stage holds; nothing for an unknown ring."""
        if (ring := self.by_epoch.get(epoch)) is not None:
            for held in self._bulk.held(epoch):
                self._outbox.put((ring.control, held))

    def _inherit(self, message: Attach) -> None:
        """Move the sequences of the epoch that the new ring replaces, whose frames are dropped from now on."""
        replaced = self.by_epoch.pop(message.inherits, None)
        for _ in range(self._sender.forget(message.inherits)):
            self._status.drop("a frame of a ring that was replaced")
        self._bulk.detach(message.inherits)
        if replaced is not None:
            replaced.close()
        self._runner.inherit(message.inherits, message.epoch)

    def detach(self, epoch: int) -> None:
        """Leave a ring: its link is closed, and its frames, keys and values are freed."""
        ring = self.by_epoch.pop(epoch, None)
        self._sender.forget(epoch)
        self._bulk.detach(epoch)
        if ring is not None:
            ring.close()
        self._runner.forget(epoch)

    def close(self) -> None:
        """Leave all rings."""
        for epoch in list(self.by_epoch):
            self.detach(epoch)
