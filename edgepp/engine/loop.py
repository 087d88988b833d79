"""The engine: turns prompts into tokens through a ring, in a thread of its own (``EngineThread``).

Other threads submit and cancel requests. Each token goes into the queue of its request, from which a ``TextStream``
makes text. An engine that ``recovers`` outlives its ring: when a stage is lost, or ``suspend`` is called for a planned
change, its requests pause, and ``resume`` gives it another ring, over which they go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress

from edgepp.engine.engine_load import EngineLoad
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.engine_thread import CancelOrder, EndOrder, EngineThread, Open, refuse
from edgepp.engine.request import GenerateOptions
from edgepp.engine.request_factory import Compile, RequestFactory
from edgepp.engine.ring import Ring, StageInfo, StageStats
from edgepp.engine.stage_handshake import RingIdentity
from edgepp.engine.stage_speeds import StageSpeed
from edgepp.engine.step_totals import StepSums
from edgepp.engine.suspension import SuspendOrder
from edgepp.engine.takeover import ResumeOrder
from edgepp.engine.timing import RecoveryKind
from edgepp.errors import EdgeppError
from edgepp.tracing.request_trace import RequestTrace


class EngineLoop:
    """Runs requests through a ring until it is closed or, unless it recovers, the ring is lost.

    Any thread may call its methods.
    """

    def __init__(
        self,
        open_parts: Open,
        eos: frozenset[int],
        budget: int | None = None,
        compiler: Compile | None = None,
        *,
        recovers: bool = False,
    ) -> None:
        """Start the engine thread and wait until its ring is up.

        All sequences together hold at most ``budget`` positions; requests that find no room wait. ``eos`` holds the
        token ids that end an answer; ``compiler`` makes the matchers of constrained requests. An engine that
        ``recovers`` waits for another ring where its ring is lost.

        Raises:
            EdgeppError: the ring cannot be opened, or the model's ends cannot be loaded.
        """
        self.requests = RequestFactory(eos, budget, compiler)
        self._loop = EngineThread(budget, recovers=recovers)
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._loop.run, args=(open_parts, opened), name="engine", daemon=True)
        self._thread.start()
        try:
            opened.result()
        except BaseException:
            if opened.done():  # else the caller was interrupted
                self._thread.join()
                self._loop.inbox.close()
            raise

    @property
    def lost(self) -> EdgeppError | None:
        """Why the engine has ended; None while it works, or waits for another ring."""
        return self._loop.lost

    @property
    def suspended(self) -> EdgeppError | None:
        """Why requests pause; None while requests are computed."""
        return self._loop.suspension.reason

    @property
    def recoveries(self) -> dict[RecoveryKind, int]:
        """How often requests went on over other stages, after a loss or a move."""
        return dict(self._loop.suspension.recoveries)

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """The stages of the ring, in order."""
        return self._loop.stages

    @property
    def ring_identity(self) -> RingIdentity | None:
        """Identity of the ring, by which the next ring recognises its stages; None for a ring in this process."""
        return self._loop.ring_identity

    @property
    def stage_stats(self) -> list[StageStats]:
        """Each stage's latest reported state, first to last."""
        return self._loop.ring.stage_stats()

    @property
    def load(self) -> EngineLoad:
        """How busy the engine is now."""
        return self._loop.core.load

    @property
    def step_sums(self) -> StepSums:
        """Sums of the times of steps, in seconds by place, since the engine took its ring."""
        return self._loop.totals.read()

    @property
    def stage_speeds(self) -> tuple[StageSpeed, ...]:
        """The speed of each stage, first to last, as the newest steps show it."""
        return self._loop.speeds.read()

    @property
    def context(self) -> int:
        """Positions that one request may take at most: prompt and answer."""
        return self._loop.limits.context

    def submit(
        self,
        prompt: Sequence[int],
        options: GenerateOptions,
        owner: str = "",
        request_id: str = "",
        trace: RequestTrace | None = None,
    ) -> EngineRequest:
        """Begin a request, whose ``events`` then yield its tokens. Prefixes are shared between requests of one owner.

        ``request_id`` is its name in logs; what is done for it is recorded in ``trace`` if there is one.

        Raises:
            UsageError: the prompt is empty or holds ids that the model does not have, prompt and answer do not fit into
                the context or the budget, or the constraint is invalid.
            Overloaded: many other constraints of the owner wait to be compiled.
            EdgeppError: the engine was closed; ``lost`` where it had lost a stage before.
        """
        request = self.requests.make(prompt, options, owner, self._loop.limits)
        request.request_id, request.trace = request_id, trace
        request.queued_s = time.perf_counter()
        try:
            self._put(request)
        except OSError:
            raise self._loop.end_reason from None
        return request

    def cancel(self, request: EngineRequest) -> None:
        """End a request early. Does nothing if the request or the engine has ended."""
        with suppress(OSError):
            self._loop.inbox.put(CancelOrder(request))

    def suspend(self, reason: EdgeppError, *, lost: bool) -> Future[None]:
        """Pause all requests until ``resume``: at once if stages are ``lost``, else once the ring is empty.

        The result is set when they pause.
        """
        return self._give(SuspendOrder(reason, lost))

    def resume(self, ring: Ring) -> Future[None]:
        """Go on over another ``ring``, which the engine closes; the result is set when it has taken over."""
        return self._give(ResumeOrder(ring))

    def end_requests(self, error: EdgeppError) -> None:
        """End all present requests with ``error``; later ones are accepted."""
        with suppress(OSError):
            self._loop.inbox.put(EndOrder(error))

    def close(self, reason: EdgeppError | None = None) -> None:
        """End every request with ``reason``, release the stages, and end the thread."""
        self._loop.closing = reason or self._loop.closing
        if self._thread.is_alive():
            self._loop.inbox.put(None)
        self._thread.join()
        self._loop.inbox.close()

    def __enter__(self) -> EngineLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, order: EngineRequest | SuspendOrder | ResumeOrder) -> None:
        """Put an order into the inbox; an engine that has ended refuses it.

        Raises:
            OSError: the engine was closed.
        """
        self._loop.inbox.put(order)
        if self._loop.has_ended:
            self._loop.refuse_orders()

    def _give(self, order: SuspendOrder | ResumeOrder) -> Future[None]:
        try:
            self._put(order)
        except OSError:
            refuse(order, self._loop.closing)
        return order.done
