"""The pause of an engine whose ring is lost, or about to be replaced: who pauses, for how long, and who goes on.

Belongs to the engine thread. Requests pause with all that they are: tokens, sampler, constraint. Their keys and values
may be lost; ``EngineCore.resume`` says what the next ring still holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from edgepp.engine.core import EngineCore
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.ring import StageInfo
from edgepp.engine.step_tracing import recovered
from edgepp.engine.suspended_sequences import SuspendedSequence
from edgepp.engine.timing import RecoveryKind, Regained
from edgepp.errors import EdgeppError, PoisonedRequest, StageLost

SAME_FAULT_S = 15.0
"""Seconds in which a second loss counts as the same fault, if the first one was the silence of a stage."""
RECOVERY_S = 120.0
"""Seconds that requests wait for another ring."""


@dataclass(frozen=True)
class SuspendOrder:
    """An order of another thread to suspend the engine; ``done`` is set when its requests pause."""

    reason: EdgeppError
    lost: bool
    """Whether the stages are lost; else the steps in the ring are awaited."""
    done: Future[None] = field(default_factory=Future)


@dataclass
class _Pause:
    reason: EdgeppError
    began_s: float
    sequences: list[SuspendedSequence]
    requests: frozenset[int]
    """Ids of the requests that were live."""


class Suspension:
    """Whether an engine is suspended, and the orders that wait for it."""

    def __init__(self, core: EngineCore[EngineRequest]) -> None:
        self._core = core
        self._pause: _Pause | None = None
        self._order: SuspendOrder | None = None
        """A planned suspension that waits for the steps in the ring."""
        self._uncertain_s = -SAME_FAULT_S
        """When stages were lost last for want of an answer, by ``time.perf_counter``."""
        self.recoveries: dict[RecoveryKind, int] = {}
        """How often requests went on after a loss, by how their keys and values were rebuilt."""

    @property
    def reason(self) -> EdgeppError | None:
        """Why requests pause; None while requests are computed. Safe from any thread."""
        pause = self._pause
        return None if pause is None else pause.reason

    @property
    def steps_may_go(self) -> bool:
        """Whether steps may be sent into the ring."""
        return self._pause is None and self._order is None

    def order(self, order: SuspendOrder) -> list[EngineRequest]:
        """Suspend as ordered, a planned suspension once the ring is empty (``look``); the requests to end by that."""
        if self._pause is None and not order.lost:
            self._order = order
            return []
        given_up = self.begin(order.reason, lost=order.lost)
        order.done.set_result(None)
        return given_up

    def begin(self, reason: EdgeppError, *, lost: bool) -> list[EngineRequest]:
        """Let all requests pause; those that must be ended now, since they make stages fail (``poisoned``)."""
        if self._pause is not None:
            self._pause.reason = reason if lost else self._pause.reason
            return []
        under_way = [request for request in self._core.live.values() if request.steps_in_ring]
        live = frozenset(request.id for request in self._core.live.values())
        self._pause = _Pause(reason, time.perf_counter(), self._core.suspend(), live)
        if not lost or self._is_same_fault(reason):
            return []
        suspects = [request for request in under_way if request.is_suspect]
        for request in under_way:
            request.recoveries += 1
        return suspects

    def _is_same_fault(self, reason: EdgeppError) -> bool:
        """Whether a loss follows from the one before: frames stop first, and then the node that died is missed.

        The end of a stage's process is always a fault of its own, since a request may be what ends it.
        """
        now_s, before_s = time.perf_counter(), self._uncertain_s
        process_ended = isinstance(reason, StageLost) and reason.gone is not None
        self._uncertain_s = -SAME_FAULT_S if process_ended else now_s
        return not process_ended and now_s - before_s < SAME_FAULT_S

    def look(self) -> None:
        """Carry out a planned suspension whose time has come. Call this in each turn of the engine thread."""
        order = self._order
        if order is not None and (self._pause is not None or not self._core.in_flight):
            self._order = None
            self.begin(order.reason, lost=False)
            order.done.set_result(None)

    @property
    def overdue(self) -> StageLost | None:
        """The error of all requests if they have waited too long for another ring; else None."""
        pause = self._pause
        if pause is None or time.perf_counter() - pause.began_s <= RECOVERY_S:
            return None
        hint = pause.reason.hint or "ask again later"
        return StageLost(f"{pause.reason}; no other pipeline was ready within {RECOVERY_S:.0f} s", hint)

    @property
    def sequences(self) -> list[SuspendedSequence]:
        """What the stages held when the requests paused."""
        return self._pause.sequences if self._pause is not None else []

    def end(self, stages: tuple[StageInfo, ...], regained: Callable[[int], Regained]) -> None:
        """Let the requests go on over other ``stages``; ``regained`` says by sequence what the core resumed with."""
        pause, self._pause = self._pause, None
        if pause is None:
            return
        sequences = {one.request: one.sequence for one in pause.sequences}
        for request in self._core.waiting:
            request.take_stages(stages)
            if request.id in pause.requests:
                found = regained(sequences.get(request.id, 0))
                request.recovery = (found, pause.began_s)
                recovered(request, pause.began_s, found.how, found.prefilled)
                self.recoveries[found.how] = self.recoveries.get(found.how, 0) + 1

    def refuse(self, error: EdgeppError) -> None:
        """Tell whoever waits for a planned suspension that the engine will not be suspended."""
        if self._order is not None:
            self._order.done.set_exception(error)


def poisoned(reason: EdgeppError, request: EngineRequest) -> PoisonedRequest:
    """The error of a request that makes stages fail."""
    return PoisonedRequest(
        f"request {request.id} was under way each of the {request.recoveries} times that a stage was lost, and is not"
        f" tried again: {reason}",
        "change the request; if others are lost too, see `edgepp status`",
    )
