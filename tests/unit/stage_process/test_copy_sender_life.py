"""A sender and a keeper of copies over a link that loses, delays and refuses: what is kept was held by all."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgepp.stage_process.copy_sender import CopySender
from tests.unit.stage_process.kept_copies import KEY, Holder, KeeperLink, frame_at


class SenderMachine(RuleBasedStateMachine):
    """Steps, background turns, and a network that loses whole connections.

    The keeper computes each frame before the sender, or after it, as it is an earlier or a later stage of the ring.
    """

    def __init__(self) -> None:
        super().__init__()
        self.holder, self.link, self.written = Holder(), KeeperLink(), 0
        self.sender = CopySender(self.holder, 1, self.link, 10)  # type: ignore[arg-type]
        self.sender.batch = 1
        self.is_earlier = False
        self.first_step = 0
        """What was written before the first step of the present ring."""
        self.frames: list[tuple[int, int]] = []
        """Position and what was written of the frames that the keeper has not computed."""
        self.returned: list[int] = []
        """What all stages of the ring have computed."""

    @initialize(is_earlier=st.booleans())
    def place(self, is_earlier: bool) -> None:
        self.is_earlier = is_earlier

    @rule(back=st.integers(0, 3))
    def step(self, back: int) -> None:
        del self.holder.written[max(0, len(self.holder.written) - back) :]
        position = len(self.holder.written)
        self.written += 1
        self.frames.append((position, self.written))
        if self.is_earlier:
            self.compute()
        self.holder.written.append(self.written % 251)
        self.sender.computed(frame_at(position, self.written - self.first_step))

    @rule(back=st.integers(0, 9))
    def another_ring(self, back: int) -> None:
        """Another ring takes over, and goes on from positions that all stages had computed, with steps from 1 on."""
        ends = (position for position, _ in self.frames)
        settled = min(len(self.holder.written), len(self.returned), *ends)
        self.frames.clear()
        self.link.reconnect()
        self.link.copies.inherit(1, 2)
        self.link.copies.inherit(2, 1)
        self.sender = CopySender(self.holder, 1, self.link, 10)  # type: ignore[arg-type]
        self.sender.batch = 1
        self.first_step = self.written
        self.step(len(self.holder.written) - max(0, settled - back))

    @rule()
    def compute(self) -> None:
        """The keeper computes the next frame."""
        if self.frames:
            position, written = self.frames.pop(0)
            self.link.copies.computed(KEY, position, written - self.first_step)
            self.returned[position:] = [written % 251]

    @rule()
    def move(self) -> None:
        self.sender.move()

    @rule()
    def deliver(self) -> None:
        self.link.deliver()

    @rule()
    def lose_the_connection(self) -> None:
        self.link.queue.clear()
        self.link.echoes.clear()

    @rule(takes=st.booleans())
    def refuse(self, takes: bool) -> None:
        self.link.takes = takes

    @rule()
    def settle(self) -> None:
        """With a network that works, the keeper soon has everything."""
        self.link.takes = True
        for _ in range(3):
            self.step(0)
            for _ in range(9 + len(self.holder.written)):
                self.compute()
                self.link.deliver()
                self.sender.move()
            self.link.deliver()
        assert self.link.kept() == bytes(self.holder.written)

    @invariant()
    def what_is_kept_is_what_the_ring_has_computed(self) -> None:
        kept = self.link.kept()
        common = min(len(kept), len(self.returned))
        oldest = min((position for position, _ in self.frames), default=common)
        assert kept[: min(common, oldest)] == bytes(self.returned[: min(common, oldest)])


TestCopySender = SenderMachine.TestCase
