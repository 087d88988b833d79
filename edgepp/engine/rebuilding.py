"""Rebuilding keys and values on the stages of a new ring, before its requests go on.

Belongs to the engine thread, which passes it the ring's events until it is ``done``. A sequence that cannot be rebuilt,
or takes too long, is given up: its request prefills it from its tokens, which always works.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.rebuild_plan import Rebuild, plan_rebuild
from edgepp.engine.rebuild_sharing import NOT_SHARED, SharedStart, SharedStarts
from edgepp.engine.ring import Failed, Ring, RingEvent, SequenceRebuilt
from edgepp.engine.suspended_sequences import SuspendedSequence
from edgepp.engine.suspension import RECOVERY_S
from edgepp.engine.timing import RecoveryKind, Regained
from edgepp.model.weights.checkpoint import Array

STALLED_S = 8.0
"""Seconds without progress, beyond what computing should take, after which a rebuild is given up.

Requests wait for ``RECOVERY_S`` and no longer, however slow a stage says it is."""
_SLACK = 4
"""How many times as long as measured computing may take before a rebuild counts as stalled."""
_MAX_CHUNKS = 4
"""Chunks of embeddings under way at a time, at most one per sequence."""

Embed = Callable[[Sequence[int], int], Array]
"""Hidden states (T, D) of T token ids, the first of which is at a position."""


@dataclass
class _Refilling:
    """A sequence whose first ``length`` embeddings are sent, chunk by chunk; the first ``sent`` have been.

    Those of its ``shared`` start are not sent; it begins once they were sent of the other sequence.
    """

    suspended: SuspendedSequence
    length: int
    until: int
    shared: SharedStart
    sent: int = 0

    @property
    def sequence(self) -> int:
        return self.suspended.sequence


class Rebuilding:
    """The rebuilds of all suspended sequences on ``ring``, which replaces the ring ``former``."""

    def __init__(self, ring: Ring, former: Ring, suspended: Sequence[SuspendedSequence], embed: Embed) -> None:
        """Order the rebuilds; what needs none is done at once."""
        self._held = {one.sequence: one.positions for one in suspended}
        self._lengths: dict[int, int] = {}
        self._how: dict[int, RecoveryKind] = {}
        self._missing: dict[int, dict[int, int]] = {}
        """Of each sequence, the positions of which ``SequenceRebuilt`` is awaited, by the stage's number."""
        self._rebuilt: dict[tuple[int, int], int] = {}
        """Positions that were rebuilt so far, by the numbers of sequence and stage."""
        self._rebuilds: dict[int, Rebuild] = {}
        self._progress_s = time.monotonic()
        self._patience_s = STALLED_S
        self._embed = embed
        self._refills: deque[_Refilling] = deque()
        self._on_the_way: dict[int, _Refilling] = {}
        """The chunks whose ``SequenceRebuilt`` is awaited; the stage cuts its connection where many more wait."""
        self._sent: dict[int, int] = {}
        """Positions whose embeddings were sent or left out, by sequence."""
        if isinstance(ring, NetworkRing) and isinstance(former, NetworkRing):
            self._begin(ring, former, suspended)

    def _begin(self, ring: NetworkRing, former: NetworkRing, suspended: Sequence[SuspendedSequence]) -> None:
        self._ring = ring
        elsewhere = former.orders.holdings_outside(ring.orders.identity, time.monotonic())
        holdings = [*ring.orders.holdings, *elsewhere]
        layers = [stage.layers for stage in ring.stages]
        shares, starts = all(stage.rewinds for stage in ring.stages), SharedStarts(holdings)
        for one in suspended:
            rebuild = plan_rebuild(one.sequence, one.positions, layers, holdings)
            if not rebuild.length or (rebuild.reporters and not one.request):
                continue  # a prefix that no request needs now is not worth a pause
            self._how[one.sequence] = rebuild.how
            if not rebuild.reporters:
                self._lengths[one.sequence] = rebuild.length
                continue
            self._rebuilds[one.sequence] = rebuild
            self._missing[one.sequence] = dict.fromkeys(rebuild.reporters, rebuild.length)
            shared = starts.add(rebuild, one.ids) if shares and rebuild.refills else NOT_SHARED
            self._order(ring, former, rebuild, one, shared)
        slowest_s = max(stage.prefill_s for stage in ring.stages)
        expected_s = slowest_s * sum(rebuild.length for rebuild in self._rebuilds.values())
        self._patience_s = min(self._patience_s + _SLACK * expected_s, RECOVERY_S)
        self._feed()

    def _order(
        self,
        ring: NetworkRing,
        former: NetworkRing,
        rebuild: Rebuild,
        suspended: SuspendedSequence,
        shared: SharedStart,
    ) -> None:
        stages = len(ring.stages)
        for move in rebuild.moves:
            source, holder = (ring, move.holder) if move.holder < stages else (former, move.holder - stages)
            ring.orders.move(suspended, rebuild.length, move, source.orders, holder)
        for refill in rebuild.refills:
            if refill.first:
                ring.orders.replay(suspended, rebuild.length, refill, shared)
            else:
                self._refills.append(_Refilling(suspended, rebuild.length, refill.until, shared, shared.length))

    def _feed(self) -> None:
        """Send embeddings of further positions, a chunk of each of ``_MAX_CHUNKS`` sequences at a time."""
        while len(self._on_the_way) < _MAX_CHUNKS and (one := next(filter(self._may_go, self._refills), None)):
            self._refills.remove(one)
            start, stop = one.sent, min(one.sent + self._ring.refill_rows, one.length)
            ids = [int(token) for token in one.suspended.ids[start:stop]]
            self._on_the_way[one.sequence], self._sent[one.sequence], one.sent = one, stop, stop
            source = one.shared.source if start == one.shared.length else 0
            hidden = self._embed(ids, start)
            self._ring.refill(one.sequence, start, one.suspended.capacity, hidden, one.until, source)

    def _may_go(self, one: _Refilling) -> bool:
        """Whether the shared start of a sequence has been sent for the sequence that it is copied from."""
        return self._sent.get(one.shared.source, 0) >= one.shared.length

    def take(self, event: RingEvent) -> None:
        """Note what a stage has rebuilt, or that it cannot."""
        if isinstance(event, Failed) and event.sequence is not None:
            self._give_up(event.sequence)
            self._feed()
        if not isinstance(event, SequenceRebuilt):
            return
        refilling = self._on_the_way.get(event.sequence)
        if refilling is not None and (event.stage, event.length) == (refilling.until, refilling.sent):
            del self._on_the_way[event.sequence]
            if refilling.sent < refilling.length:
                self._refills.append(refilling)
            self._feed()
        self._grown(event)

    def _grown(self, event: SequenceRebuilt) -> None:
        """Note the positions of a sequence that a stage has rebuilt; what nobody waits for is no progress."""
        missing = self._missing.get(event.sequence, {})
        if event.length <= self._rebuilt.get((event.sequence, event.stage), 0) or event.stage not in missing:
            return
        self._progress_s = time.monotonic()
        self._rebuilt[event.sequence, event.stage] = event.length
        if event.length >= missing[event.stage]:
            del missing[event.stage]
            if not missing:
                del self._missing[event.sequence]
                self._lengths[event.sequence] = self._rebuilds[event.sequence].length

    def _give_up(self, sequence: int) -> None:
        self._missing.pop(sequence, None)
        self._lengths.pop(sequence, None)
        self._on_the_way.pop(sequence, None)
        self._how[sequence] = "prefill"
        self._refills = deque(one for one in self._refills if one.sequence != sequence)
        for one in self._refills:
            if one.shared.source == sequence and one.sent == one.shared.length:  # nothing is left to copy from
                one.shared, one.sent = NOT_SHARED, 0

    @property
    def done(self) -> bool:
        """Whether no rebuild is awaited any more. Reading this gives up rebuilds that have stalled."""
        if self._missing and time.monotonic() - self._progress_s > self._patience_s:
            for sequence in list(self._missing):
                self._give_up(sequence)
        return not self._missing

    @property
    def lengths(self) -> Mapping[int, int]:
        """By sequence, the positions that all stages hold now."""
        return self._lengths

    def regained(self, sequence: int) -> Regained:
        """The way in which a sequence was rebuilt, and the positions that are prefilled again."""
        held = self._held.get(sequence, 0)
        return Regained(self._how.get(sequence, "prefill"), held - self._lengths.get(sequence, 0))
