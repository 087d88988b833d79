"""Work of a stage between two frames: replays, copies, and keys and values that go to or come from other stages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from edgepp.errors import RemoteProtocolError, StageFault
from edgepp.layer_range import LayerRange
from edgepp.stage_process.attachment import Attachment
from edgepp.stage_process.boundary_log import BoundaryLog
from edgepp.stage_process.bulk_link import BulkAttempt, BulkLink
from edgepp.stage_process.copy_sender import CopySender
from edgepp.stage_process.frame_sender import FrameSender
from edgepp.stage_process.frames import Frame, sequences_of, spans_of
from edgepp.stage_process.held_sequences import held_messages
from edgepp.stage_process.kv_arrivals import KvArrivals
from edgepp.stage_process.kv_copies import KvCopies
from edgepp.stage_process.kv_pieces import CachePiece, data_of, max_piece_bytes
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.paced_link import PacedLink
from edgepp.stage_process.push_queue import PushFault, PushQueue
from edgepp.stage_process.replays import Replays
from edgepp.wire.messages.data import REPLAYED, Forward, Kept, KvPiece
from edgepp.wire.messages.recovery import Expect, Held, Push, Rebuilt, Replay

log = logging.getLogger("edgepp.stage")

MIN_COPIES_BYTES_PER_S = 2e6
"""Rate of a link below which copies, which are larger than hidden states, would delay these."""
MAX_PUSH_TARGETS = 16
"""Stages to which one ring sends keys and values at the same time."""
BUSY_INTERVAL_S = 0.001
"""How often a link with too much on the way is looked at again."""
IDLE_INTERVAL_S = 0.5
"""How often a link that is not connected is looked at again."""

Target = tuple[int, str, str]
"""(epoch, addresses, key) of a stage that receives keys and values."""


class BulkWork:
    """The work of all rings. Belongs to the compute thread."""

    def __init__(
        self,
        runner: ModelRunner,
        sender: FrameSender,
        boundary_log: BoundaryLog,
        max_copies_bytes: int,
        on_fault: Callable[[Attachment, int, str], None],
        on_rebuilt: Callable[[Attachment, Rebuilt], None],
    ) -> None:
        """``on_fault`` frees a sequence and reports why; ``on_rebuilt`` reports a restored sequence."""
        self._runner = runner
        self._sender = sender
        self._boundary_log = boundary_log
        self._on_fault = on_fault
        self._on_rebuilt = on_rebuilt
        self._piece_bytes = max_piece_bytes(runner.model.hidden_size)
        self._copies = KvCopies(max_copies_bytes)
        self._arrivals = KvArrivals(runner)
        self._replays: dict[int, tuple[Replays, PacedLink]] = {}
        self._senders: dict[int, CopySender] = {}
        self._pushes: dict[Target, PushQueue] = {}
        self.connect: Callable[[BulkAttempt], None] = _cannot_connect
        """Begins to make a link in another thread; its ``BulkConnected`` comes back to the compute thread."""
        runner.sequence_states += [boundary_log, self._copies, self._arrivals]

    @property
    def nbytes(self) -> int:
        """Memory of the log and of the copies."""
        return self._boundary_log.nbytes + self._copies.nbytes

    @property
    def wait_s(self) -> float | None:
        """Longest wait of the compute thread for the next frame, in seconds; None where there is no bulk work."""
        if any(replays for replays, _ in self._replays.values()):
            return BUSY_INTERVAL_S
        waiting = [one.is_connected for one in self._senders.values() if one]
        waiting += [one.is_connected for one in self._pushes.values() if one]
        return (BUSY_INTERVAL_S if any(waiting) else IDLE_INTERVAL_S) if waiting else None

    def attach(self, ring: Attachment, bytes_per_s: float) -> None:
        """Prepare for the work of a new ring, where hidden states leave this stage at ``bytes_per_s``."""
        message = ring.message
        if ring.next is not None:
            chunk = self._runner.model.chunk
            self._replays[message.epoch] = Replays(self._boundary_log, chunk), PacedLink(ring.next)
        if message.keeper_addresses and 0 < bytes_per_s < MIN_COPIES_BYTES_PER_S:
            log.warning("a link of %.1f Mbit/s is too slow for copies of keys and values", bytes_per_s * 8e-6)
        elif message.keeper_addresses and self._runner.model.kv_layout:
            link = BulkLink(message.keeper_addresses, message.keeper_key, self.connect)
            sender = self._senders[message.epoch] = CopySender(self._runner, message.epoch, link, self._piece_bytes)
            self._runner.sequence_states.append(sender)

    def detach(self, epoch: int) -> None:
        """End the work of a ring, and close its links."""
        self._replays.pop(epoch, None)
        sender = self._senders.pop(epoch, None)
        if sender is not None:
            self._runner.sequence_states.remove(sender)
            sender.close()
        for target in [target for target in self._pushes if target[0] == epoch]:
            self._pushes.pop(target).close()

    def held(self, epoch: int) -> Iterator[Held]:
        """Messages that report the sequences of an epoch that the stage holds."""
        layers = self._runner.model.layers
        yield from held_messages(epoch, "kv", layers, self._runner.lengths(epoch))
        yield from held_messages(epoch, "log", layers, self._boundary_log.lengths(epoch))
        for kept, lengths in self._copies.lengths(epoch).items():
            yield from held_messages(epoch, "copy", kept, lengths)

    def order(self, ring: Attachment, message: Replay | Expect | Push) -> None:
        """Begin what the coordinator orders; its sequence fails where that is impossible."""
        try:
            match message:
                case Replay():
                    self._replay(ring, message)
                case Expect() if self._arrivals.expect(message):
                    self._on_rebuilt(ring, Rebuilt(message.epoch, message.sequence, message.length))
                case Push():
                    self._push(message)
        except StageFault as fault:
            self._on_fault(ring, message.sequence, str(fault))

    def computed(self, ring: Attachment, frame: Frame) -> None:
        """Send copies of a frame that was computed and sent on."""
        if self._arrivals:
            for sequence in sequences_of(frame):
                self._arrivals.free((frame.epoch, sequence))
        if ring.message.keeps_copies or self._copies.nbytes:
            self._overwrite_copies(ring, frame)
        sender = self._senders.get(frame.epoch)
        if sender is not None:
            sender.computed(frame)

    def receive(self, ring: Attachment, sender: str, piece: KvPiece, frames: Sequence[memoryview]) -> None:
        """Keep or use a received piece.

        Raises:
            RemoteProtocolError: Nobody asked for the piece, or a copy cannot be kept.
        """
        if piece.purpose == "restore":
            self._restore(ring, sender, piece, frames)
            return
        message = ring.message
        if not message.keeps_copies or sender != message.copies_from or piece.stop > self._runner.context:
            raise RemoteProtocolError("a copy of keys and values that this stage does not keep")
        layers = LayerRange(piece.start_layer, piece.stop_layer)
        kept = CachePiece(layers, piece.start, piece.stop, bytes(data_of(piece, frames)))
        self._copies.keep((piece.epoch, piece.sequence), kept, piece.layout, piece.step)

    def kept(self, ring: Attachment, sender: str, message: Kept) -> Kept:
        """The reply to a stage that asks for the state of its kept copies.

        Raises:
            RemoteProtocolError: Nothing is kept for that stage.
        """
        if message.reply or not ring.message.keeps_copies or sender != ring.message.copies_from:
            raise RemoteProtocolError("a question for copies of keys and values that this stage does not keep")
        return message._replace(length=self._copies.left(message), reply=True)

    def move(self, rings: dict[int, Attachment]) -> bool:
        """Send one piece of each kind of work, where there is room; whether anything was sent."""
        moved = False
        for epoch, (replays, pace) in self._replays.items():
            if replays:
                moved |= self._move_replay(rings[epoch], replays, pace)
        for sender in self._senders.values():
            moved |= bool(sender) and sender.move()
        for (epoch, *_), queue in self._pushes.items():
            try:
                moved |= bool(queue) and queue.move()
            except PushFault as fault:
                for push in fault.pushes:
                    self._on_fault(rings[epoch], push.sequence, str(fault))
        return moved

    def _replay(self, ring: Attachment, message: Replay) -> None:
        if ring.next is None or message.until <= ring.stage:
            raise StageFault("a replay goes to later stages")
        self._replays[message.epoch][0].add(message)

    def _move_replay(self, ring: Attachment, replays: Replays, pace: PacedLink) -> bool:
        try:
            pace.read_echoes()
            if ring.unsent or not pace.has_room(replays.chunk_bytes) or not (chunk := replays.take()):
                return False
            pace.mark(self._sender.pass_on(ring, *chunk))
        except RemoteProtocolError as error:
            for replay in replays.clear():
                self._on_fault(ring, replay.sequence, f"the next stage broke the protocol: {error}")
            return False
        return True

    def _push(self, message: Push) -> None:
        target = message.epoch, message.addresses, message.key
        queue = self._pushes.get(target)
        if queue is None:
            for idle in [one for one, queue in self._pushes.items() if not queue]:
                self._pushes.pop(idle).close()
            if sum(one[0] == message.epoch for one in self._pushes) >= MAX_PUSH_TARGETS:
                raise StageFault(f"keys and values go to {MAX_PUSH_TARGETS} stages already")
            link = BulkLink(message.addresses, message.key, self.connect)
            queue = self._pushes[target] = PushQueue(self._runner, self._copies, link, self._piece_bytes)
        queue.add(message)

    def _overwrite_copies(self, ring: Attachment, frame: Frame) -> None:
        """Drop copies that a frame overwrites; frames that rebuild what was lost overwrite nothing."""
        if isinstance(frame, Forward) and (
            frame.step == REPLAYED or (ring.next is not None and frame.until == ring.stage)
        ):
            return
        for sequence, position, _ in spans_of(frame):
            self._copies.computed((frame.epoch, sequence), position, frame.step)

    def _restore(self, ring: Attachment, sender: str, piece: KvPiece, frames: Sequence[memoryview]) -> None:
        if not self._arrivals.accepts(sender, piece):
            self._arrivals.keep_early(sender, piece, data_of(piece, frames))
            return
        try:
            length = self._arrivals.take(piece, data_of(piece, frames))
        except (StageFault, RemoteProtocolError) as error:
            self._on_fault(ring, piece.sequence, str(error))
            return
        if length is not None:
            self._on_rebuilt(ring, Rebuilt(piece.epoch, piece.sequence, length))


def _cannot_connect(attempt: BulkAttempt) -> None:
    attempt.owner.connected(None, "this stage makes no links")
