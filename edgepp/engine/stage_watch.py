"""Watches the stages of a ring over their control links: pings, suspicion, ended connections, and steps that stay out.

Belongs to the engine thread. A stage is suspect before it is lost, and is heard again without consequences. It is lost

- at once where its connection has ended and its system says that no program listens at its port any more;
- after ``LOST_S`` without an answer to a ping, whether it sleeps, hangs, or cannot be reached;
- where it answers, but has been at one step for longer than ``OutstandingSteps`` allows.

An ended connection alone is no loss: links flap, and ZeroMQ connects again by itself within a second.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from edgepp.engine.outstanding_steps import OutstandingSteps
from edgepp.engine.ring import StageInfo, StageStats
from edgepp.engine.ring_links import RingLinks
from edgepp.engine.stage_handshake import Peer
from edgepp.errors import StageLost
from edgepp.wire.frame_marks import clock_us
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.control import Ping, Pong
from edgepp.wire.port_probe import PortProbe

PING_S = 0.5
"""Seconds between two pings of a stage."""
_FIRST_PINGS, _FIRST_PING_S = 8, 0.025
"""The first pings of a ring follow one another faster, since they show how the clocks of the stages differ."""
SUSPECT_S = 2.0
"""Seconds without an answer to a ping after which a stage is suspect."""
LOST_S = 5.0
"""Seconds without an answer to a ping after which a stage is lost: a lid that is closed for a second costs nothing."""
_PROBE_S = 0.1
"""Seconds between two questions whether anything listens at a port."""
_SLEEP_S = 2.0
"""A turn of the engine thread that takes longer is no silence of the stages: this machine slept, or was busy."""


class StageWatch:
    """Watches the stages of one ring."""

    def __init__(
        self,
        epoch: int,
        peers: Sequence[Peer],
        stages: Sequence[StageInfo],
        links: RingLinks,
        outstanding: OutstandingSteps,
    ) -> None:
        self._epoch, self._peers, self._stages, self._links = epoch, peers, stages, links
        self._outstanding = outstanding
        self._probes: dict[int, tuple[PortProbe, float]] = {}
        """For each stage without a connection the newest probe, and when it began."""
        self._listening: set[int] = set()
        """Stages without a connection at whose port a program listened, by the last probe that has ended."""
        self._looked_s = self._pinged_s = time.monotonic()
        self._num_pings = 0
        for peer in peers:
            peer.heard_s = self._looked_s

    @property
    def _ping_interval_s(self) -> float:
        return PING_S if self._num_pings >= _FIRST_PINGS else _FIRST_PING_S

    @property
    def wait_s(self) -> float:
        """Seconds until ``look`` is due again."""
        return _PROBE_S / 4 if self._probes else self._ping_interval_s / 2

    @property
    def reconnects(self) -> int:
        """Connections of the ring that were made again after one had ended, as far as is known."""
        return sum(peer.stats.reconnects for peer in self._peers)

    def stats(self) -> list[StageStats]:
        """Each stage's state by its last answer to a ping. Safe from any thread."""
        now_s = time.monotonic()
        found = []
        for peer in self._peers:
            clock, silent_s = peer.clock.at(clock_us()), max(0.0, now_s - peer.heard_s)
            known = (clock.offset_us / 1e6, clock.error_us / 1e6) if clock.is_known else (None, None)
            found.append(replace(peer.stats, silent_s=silent_s, clock_offset_s=known[0], clock_error_s=known[1]))
        return found

    def heard(self, index: int, pong: Pong) -> StageLost | None:
        """Take a stage's answer to a ping; the loss if it was started again since."""
        self._peers[index].take(pong, self._links.reconnects(index), time.monotonic())
        if pong.known:
            return None
        return StageLost(f"{self._stages[index]} has forgotten this chat: it was restarted or asleep")

    def look(self, *, judging: bool = True) -> StageLost | None:
        """Ping the stages that are due; returns the loss of a stage if there is one. Call this in each turn.

        Without ``judging``, as for a ring that is lost already, the stages that are left are kept from forgetting it.
        """
        now_s = time.monotonic()
        self._forgive(now_s)
        if now_s - self._pinged_s >= self._ping_interval_s:
            self._pinged_s, self._num_pings = now_s, self._num_pings + 1
            for link in self._links.opened:
                link.enforce_limits()
            for index in range(len(self._peers)):
                self._ping(index)
        for index, peer in enumerate(self._peers):
            if peer.control.is_connected():
                self._reconnected(index)
            elif judging and self._is_gone(index, now_s):
                return StageLost(f"{self._stages[index]} is gone: nothing listens at its port any more", gone=index)
        return None

    def frame_lost(self, teller: int, stage: int) -> StageLost | None:
        """The loss that the stage ``teller`` tells of: a frame did not reach ``stage``, itself or the next one.

        None where ``stage`` is neither.
        """
        if stage == teller:
            return StageLost(f"a frame did not reach {self._stages[stage]}")
        if stage == teller + 1 < len(self._stages):
            return StageLost(f"{self._stages[stage]} is gone: the previous stage cannot reach this stage any more")
        return None

    def overdue(self) -> StageLost | None:
        """The loss of a stage that has not answered in time, or of a step; call this after the messages were taken."""
        now_s = time.monotonic()
        for index, (peer, stage) in enumerate(zip(self._peers, self._stages, strict=True)):
            if now_s - peer.heard_s > LOST_S:
                # where its port cannot be reached, the link is to blame and not the process
                hanging = index if peer.control.is_connected() or index in self._listening else None
                return StageLost(f"{stage} stopped answering", hanging=hanging)
            if self._outstanding.is_wedged(index, peer.busy_us / 1e6):
                return self._wedged(index, peer.busy_us / 1e6)
        busiest = max(range(len(self._peers)), key=lambda i: self._peers[i].busy_us)
        idle = not self._peers[busiest].busy_us
        last = self._stages[-1]
        if (silent_s := self._outstanding.overdue_s(now_s, idle=idle)) is not None:
            if not idle:
                return self._wedged(busiest, silent_s)
            return StageLost(
                f"nothing came back from {last} for {silent_s:.0f} s although no stage is computing:"
                " a frame was lost on the way"
            )
        if idle and self._outstanding.is_lost(now_s, self.reconnects):
            return StageLost(f"nothing came back from {last}: a frame was lost when a connection broke")
        if self._outstanding.is_incomplete(now_s):
            return StageLost(f"{last} left out a part of an answer: it was lost on the way")
        return None

    def close(self) -> None:
        """Give up all probes."""
        for probe, _ in self._probes.values():
            probe.close()
        self._probes.clear()

    def _wedged(self, index: int, busy_s: float) -> StageLost:
        return StageLost(
            f"{self._stages[index]} has been at one step for {busy_s:.0f} s and counts as wedged", hanging=index
        )

    def _ping(self, index: int) -> None:
        self._peers[index].control.send([encode(Ping(self._epoch, clock_us()))])

    def _reconnected(self, index: int) -> None:
        """Ask a stage that was without a connection whether it is the same process as before."""
        self._listening.discard(index)
        if index in self._probes:
            self._probes.pop(index)[0].close()
            self._ping(index)

    def _is_gone(self, index: int, now_s: float) -> bool:
        """Whether nothing listens any more at the port of a stage that has no connection."""
        probe, began_s = self._probes.get(index, (None, 0.0))
        if probe is not None and (probe.refused or now_s - began_s < _PROBE_S):
            return probe.refused
        if probe is not None:
            if probe.connected:
                self._listening.add(index)
            else:
                self._listening.discard(index)
            probe.close()
        probe = PortProbe(self._peers[index].address)
        self._probes[index] = probe, now_s
        return probe.refused

    def _forgive(self, now_s: float) -> None:
        """Move all deadlines by the time in which this thread itself did not run."""
        gap_s = now_s - self._looked_s
        self._looked_s = now_s
        if gap_s > _SLEEP_S:
            self._outstanding.postpone(gap_s)
            for peer in self._peers:
                peer.heard_s += gap_s
