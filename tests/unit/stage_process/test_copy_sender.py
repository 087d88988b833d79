"""A sender and a keeper of copies over a link that loses, delays and refuses: what is kept is always what was held.

What the keeper has is not sent again: after another ring took over, and where a sequence begins as a copy.
"""

from __future__ import annotations

import pytest

from edgepp.stage_process import paced_link
from edgepp.stage_process.copy_sender import CopySender
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.data import REPLAYED, Batch, Forward, Kept
from tests.unit.stage_process.kept_copies import KEY, LAYERS, Holder, KeeperLink, frame_at


def settle(sender: CopySender, link: KeeperLink) -> None:
    """Let sender and keeper exchange what they have for each other."""
    while sender or link.queue or link.echoes:
        link.deliver()
        sender.move()
        if not sender and not link.queue:
            break


def decoded(holder: Holder, link: KeeperLink, positions: int) -> CopySender:
    """A sender that has sent what it could of so many positions."""
    sender = CopySender(holder, 1, link, 4 * CopySender.batch)  # type: ignore[arg-type]
    for position in range(positions):
        holder.written.append(position)
        sender.computed(frame_at(position, position + 1))
        link.deliver()
    return sender


def test_the_next_ring_sends_only_what_the_keeper_lacks() -> None:
    holder, link = Holder(), KeeperLink()
    decoded(holder, link, 28)
    link.copies.inherit(1, 2)
    link.copies.inherit(2, 1)
    link.reconnect()
    link.pieces.clear()
    sender = CopySender(holder, 1, link, 4 * CopySender.batch)  # type: ignore[arg-type]
    sender.computed(Forward(1, KEY[1], REPLAYED, 0, 64, 0, 0, 28, 8, "float32", "none", ()))
    assert not sender, "a rebuild asks for nothing"
    del holder.written[22:]
    for position in range(22, 34):
        holder.written.append(100 + position)
        link.copies.computed(KEY, position, position - 22)
        sender.computed(frame_at(position, position - 22))
        settle(sender, link)
    assert link.pieces == [(KEY[1], 16, 23), (KEY[1], 23, 31)]
    assert link.kept() == bytes(holder.written[:31])


def test_a_keeper_that_lost_everything_gets_all() -> None:
    holder, link = Holder(), KeeperLink()
    decoded(holder, link, 28)
    link.copies.forget(1)
    link.reconnect()
    sender = CopySender(holder, 1, link, 4 * CopySender.batch)  # type: ignore[arg-type]
    holder.written.append(28)
    sender.computed(frame_at(28, 0))
    settle(sender, link)
    assert link.kept() == bytes(holder.written)


class Clock:
    """Stands in for the module ``time``."""

    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


def test_lost_messages_cost_what_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(paced_link, "time", clock)
    holder, link = Holder(), KeeperLink()
    sender = decoded(holder, link, 24)
    for position in range(24, 40):
        holder.written.append(position)
        sender.computed(frame_at(position, position + 1))
    link.queue.clear()  # the pieces are lost, and the echo behind them
    link.pieces.clear()
    holder.written += range(40, 48)
    sender.computed(Forward(1, KEY[1], 41, 40, 64, 0, 0, 8, 8, "float32", "none", ()))
    assert not sender.move(), "there is no room until the echo is overdue"
    clock.now_s += paced_link.ECHO_WAIT_S + 1
    settle(sender, link)
    holder.written += range(48, 56)
    sender.computed(Forward(1, KEY[1], 42, 48, 64, 0, 0, 8, 8, "float32", "none", ()))
    settle(sender, link)
    assert min(start for _, start, _ in link.pieces) == 24
    assert link.kept() == bytes(holder.written)


def test_a_copy_of_a_sequence_is_not_sent_where_the_keeper_has_the_sequence() -> None:
    holder, link = Holder(), KeeperLink()
    sender = decoded(holder, link, 28)
    settle(sender, link)
    link.pieces.clear()
    sender.fork(KEY, (1, 9), 26)
    sender.computed(frame_at(26, 40, sequence=9))
    settle(sender, link)
    assert link.copies.lengths(1)[LAYERS] == {5: 24, 9: 28}
    assert link.pieces == [(9, 24, 28)]
    sender.free(KEY)
    link.copies.free(KEY)
    assert link.copies.pieces((1, 9), LAYERS, 0, 28, "form") is not None
    link.copies.free((1, 9))
    assert link.copies.nbytes == 0


def test_a_copy_of_a_sequence_that_has_gone_back_since_takes_over_only_what_is_right() -> None:
    holder, link = Holder(), KeeperLink()
    sender = decoded(holder, link, 24)
    link.takes = False
    sender.fork(KEY, (1, 9), 24)
    sender.computed(frame_at(24, 40, sequence=9))
    sender.computed(frame_at(12, 41))
    link.takes = True
    link.pieces.clear()
    settle(sender, link)
    assert min(start for sequence, start, _ in link.pieces if sequence == 9) == 8


def test_a_keeper_that_claims_more_than_was_asked_is_cut_off() -> None:
    holder, link = Holder(), KeeperLink()
    decoded(holder, link, 24)
    link.reconnect()
    sender = CopySender(holder, 1, link, 4 * CopySender.batch)  # type: ignore[arg-type]
    dropped: list[bool] = []
    link.drop = lambda: dropped.append(True)  # type: ignore[attr-defined]
    sender.computed(frame_at(24, 0))
    link.echoes.append(encode(Kept(*KEY, 0, 2, 4, 25, "form", 1, reply=True)))
    sender.move()
    assert dropped


def test_positions_of_a_decoding_sequence_go_together() -> None:
    holder, link = Holder(), KeeperLink()
    sender = CopySender(holder, 1, link, 4 * CopySender.batch)  # type: ignore[arg-type]
    for position in range(3 * CopySender.batch + 2):
        holder.written.append(position)
        sender.computed(Batch(1, position + 1, (KEY[1],), (position,), 8, "float32", "none", ()))
        assert not sender
        link.deliver()
    pieces = link.copies.pieces(KEY, LAYERS, 0, 3 * CopySender.batch, "form")
    assert pieces is not None
    assert [(one.start, one.stop) for one in pieces] == [(0, 8), (8, 16), (16, 24)]
    assert link.kept() == bytes(holder.written[: 3 * CopySender.batch])
    assert link.refused == 0
