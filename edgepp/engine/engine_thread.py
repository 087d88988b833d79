"""Engine thread: owns ring, model ends and core, and runs requests through the ring as ``EngineCore`` decides.

Other threads give it orders through its inbox. Where its ring is lost, or another thread orders so for a planned
change, its requests pause (``Suspension``) until another ring takes over (``Takeover``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

from edgepp.backend.base import EmbeddingAndHead
from edgepp.backend.device import release_thread
from edgepp.engine.core import EngineCore
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.request_factory import RequestLimits
from edgepp.engine.ring import Failed, Ring, RingEvent, SequenceRebuilt
from edgepp.engine.speculation import Draft
from edgepp.engine.step_runner import StepRunner
from edgepp.engine.step_tracing import admitted, follow_draft
from edgepp.engine.suspension import SuspendOrder, Suspension, poisoned
from edgepp.engine.takeover import ResumeOrder, Takeover
from edgepp.engine.token_drawing import DrawingThread
from edgepp.error_boundary import failure
from edgepp.errors import EdgeppError, StageLost
from edgepp.wire.mailbox import Mailbox

_IDLE_S = 0.5
"""Seconds that the thread waits for an event at most; a new order ends the wait."""


@dataclass(frozen=True)
class EngineParts:
    """The ring, model ends and draft of an engine; all belong to the engine thread."""

    ring: Ring
    ends: EmbeddingAndHead
    draft: Callable[[str], Draft] | None = None
    """Makes the draft of one request of an owner; None for no guesses."""
    draft_ready: Mailbox[None] | None = None
    """Has something when a draft has new guesses; None for drafts that have theirs at once."""
    together: bool = False
    """Whether one step may carry several guesses, which kernels may round differently from single rows."""
    spare_steps: int = 0
    """Decode steps that may travel beyond one per stage."""
    draws_beside: bool = False
    """Whether the head has a processor of its own: tokens are then drawn beside the engine thread while other steps go
    on. Any thread may call such ``ends``."""


Open = Callable[[], EngineParts]
"""Opens the ring and loads the model's ends; called on the engine thread, which uses them."""


@dataclass(frozen=True)
class CancelOrder:
    """An order of another thread to end a request early."""

    request: EngineRequest


@dataclass(frozen=True)
class EndOrder:
    """An order of another thread to end all present requests with ``error``."""

    error: EdgeppError


Order: TypeAlias = EngineRequest | CancelOrder | SuspendOrder | ResumeOrder | EndOrder
"""An order of another thread: a request to run, or one of the others."""


class EngineThread:
    """Runs requests until it is closed or, unless it recovers, its ring is lost. All methods belong to one thread."""

    def __init__(self, budget: int | None, *, recovers: bool) -> None:
        """Allow all sequences together ``budget`` positions; wait for another ring after a loss if it ``recovers``."""
        self._budget = budget
        self._recovers = recovers
        self._new_draft: Callable[[str], Draft] | None = None
        self._takeover: Takeover | None = None
        self._inspected = False
        """Whether the stages of a ring that is left were asked what they hold."""
        self.inbox: Mailbox[Order | None] = Mailbox()
        """Orders of other threads; None ends the engine."""
        self._orders: deque[Order | None] = deque()
        """Orders that were taken from the inbox and not carried out yet."""
        self.has_ended = False
        """Whether the thread takes no orders any more; who gave one since then must call ``refuse_orders``."""
        self.lost: EdgeppError | None = None
        """Why the engine has ended; None while it works, or waits for another ring."""
        self.closing = EdgeppError("the engine was closed")
        """The error of every request that is left when the engine ends."""

    def run(self, open_parts: Open, opened: Future[None]) -> None:
        """Open the ring, tell ``opened``, and carry out orders until the order None."""
        try:
            self._run(open_parts, opened)
        finally:
            release_thread()

    def _run(self, open_parts: Open, opened: Future[None]) -> None:
        try:
            self._set_up(open_parts())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
            opened.set_exception(error)
            return
        opened.set_result(None)
        try:
            while self._take_orders():
                self._take_drawn()
                sent = self.suspension.steps_may_go and self._send_step()
                self._runner.publish()
                for event in self.ring.poll(0.0 if sent else _IDLE_S):
                    self._handle(event)
                self.suspension.look()
                self._inspect_once()
                self._go_on_when_rebuilt()
                if (overdue := self.suspension.overdue) is not None:
                    self._end_all(overdue)
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: no request may be left waiting
            self._fail_all(failure(error, "the engine"))
        finally:
            self._fail_all(self.end_reason)
            self._runner.publish()
            self.suspension.refuse(self.closing)
            self._end_takeover(self.closing)
            for order in self._orders:
                refuse(order, self.end_reason)
            self.has_ended = True
            self.refuse_orders()
            self.ring.close()
            if self._drawing is not None:
                self._drawing.close()
            # Errors refer to the engine in cycles, which are collected late: free what is large now.
            del self._runner, self._ends, self._draft, self._drawing
            self._new_draft = None

    def _set_up(self, parts: EngineParts) -> None:
        self._ends, self._draft, self._vocabulary = parts.ends, parts.draft, parts.ends.vocabulary
        self._draft_ready, self._together = parts.draft_ready, parts.together
        self.core: EngineCore[EngineRequest] = EngineCore(parts.ring.stages, self._budget, parts.spare_steps)
        self.suspension = Suspension(self.core)
        self._drawing = DrawingThread(parts.ends) if parts.draws_beside else None
        self._take_ring(parts.ring)

    def _take_ring(self, ring: Ring) -> None:
        self.ring, self.stages = ring, ring.stages
        self.limits = RequestLimits(ring.stages, self._vocabulary)
        """What bounds the requests that are made from now on."""
        self.ring_identity = ring.orders.identity if isinstance(ring, NetworkRing) else None
        """Identity of the ring, by which the next ring recognises its stages; None for a ring in this process."""
        ring.wake_on(self.inbox)
        if self._draft_ready is not None:
            ring.wake_on(self._draft_ready)
        self._new_draft = self._draft if all(stage.rewinds for stage in ring.stages) else None
        if self._drawing is not None:
            ring.wake_on(self._drawing.draws)
        self._runner = StepRunner(self.core, ring, self._ends, self._drawing, together=self._together)
        self.totals, self.speeds = self._runner.totals, self._runner.speeds
        """Where the time of steps went on this ring."""

    def _take_drawn(self) -> None:
        for draws, took_s in self._drawing.take() if self._drawing is not None else ():
            self.totals.add_head(took_s)
            self._runner.take_drawn(draws)

    def _send_step(self) -> bool:
        self._admit()
        if self._draft_ready is not None:
            self._draft_ready.drain()
        return self._runner.send_next()

    def _take_orders(self) -> bool:
        """Carry out the orders of other threads; False once the order to stop (None) has come."""
        self._orders.extend(self.inbox.drain())
        while self._orders:
            match self._orders.popleft():
                case None:
                    return False
                case EngineRequest() as request:
                    self._add(request)
                case CancelOrder(request):
                    self._runner.cancel(request)
                case SuspendOrder() as order:
                    self._give_up(self.suspension.order(order), order.reason)
                case ResumeOrder() as order:
                    self._resume(order)
                case EndOrder(error):
                    self._end_all(error)
        return True

    def _add(self, request: EngineRequest) -> None:
        if self.lost is not None:
            self._runner.end(request, self.lost)
            return
        try:
            self.core.add(request)
        except EdgeppError as error:
            self._runner.end(request, error)

    def _admit(self) -> None:
        for request in self.core.admit():
            admitted(request)
            if request.draft is None and self._new_draft is not None:
                request.draft = self._new_draft(request.owner)
                follow_draft(request)
        for sequence in self.core.freed():
            self.ring.free(sequence)

    def _handle(self, event: RingEvent) -> None:
        if isinstance(event, Failed) and event.sequence is None:
            self._lose_ring(event.error)
        elif self._takeover is not None:
            self._takeover.rebuilding.take(event)
        elif self.suspension.reason is None and not isinstance(event, SequenceRebuilt):  # else of stages that were left
            self._runner.take(event)

    def _lose_ring(self, error: EdgeppError) -> None:
        if not self._recovers:
            self._fail_all(error)
            return
        self._give_up(self.suspension.begin(error, lost=True), error)
        self._end_takeover(error)

    def _give_up(self, requests: Sequence[EngineRequest], reason: EdgeppError) -> None:
        for request in requests:
            self._runner.end(request, poisoned(reason, request))

    def _resume(self, order: ResumeOrder) -> None:
        if self.lost is not None:
            order.refuse(self.lost)
            return
        replaced = StageLost("another pipeline took over")
        if self.suspension.reason is None:
            self._give_up(self.suspension.begin(replaced, lost=True), replaced)
        self._runner.publish()
        self._end_takeover(replaced)
        former = self.ring
        self._take_ring(order.ring)
        self._takeover = Takeover(order, former, self.suspension.sequences, self._ends.embed)

    def _inspect_once(self) -> None:
        """Ask the stages of a ring that is left what they hold, for the ring that replaces it."""
        if self.suspension.reason is None or self._takeover is not None:
            self._inspected = False
        elif not self._inspected and isinstance(self.ring, NetworkRing):
            self._inspected = True
            self.ring.orders.inspect()

    def _go_on_when_rebuilt(self) -> None:
        """Let the requests go on once the stages of a new ring hold what could be rebuilt."""
        if self._takeover is not None and self._takeover.look():
            rebuilding = self._takeover.rebuilding
            self.core.resume(self.stages, rebuilding.lengths)
            self.suspension.end(self.stages, rebuilding.regained)
            self._end_takeover()

    def _end_takeover(self, error: EdgeppError | None = None) -> None:
        takeover, self._takeover = self._takeover, None
        if takeover is not None:
            takeover.end(error)

    def _end_all(self, error: EdgeppError) -> None:
        for request in (*self.core.live.values(), *self.core.waiting):
            self._runner.end(request, error)

    def _fail_all(self, error: EdgeppError) -> None:
        """End all requests with ``error``, and every request submitted from now on."""
        self.lost = error
        self._end_all(error)

    @property
    def end_reason(self) -> EdgeppError:
        """Why new orders are refused: a stage was lost, or the engine is closed."""
        return self.lost or self.closing

    def refuse_orders(self) -> None:
        """Refuse the orders in the inbox. Any thread may call this once the engine has ended."""
        for order in self.inbox.drain():
            refuse(order, self.end_reason)


def refuse(order: Order | None, error: EdgeppError) -> None:
    """Pass ``error`` to whoever waits for ``order``, which is not carried out."""
    if isinstance(order, SuspendOrder):
        order.done.set_exception(error)
    elif isinstance(order, ResumeOrder):
        order.refuse(error)
    elif isinstance(order, EngineRequest):
        order.events.put(error)
