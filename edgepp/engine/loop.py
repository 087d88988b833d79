"""The engine thread: turns prompts into tokens through a ring, step by step as ``EngineCore`` decides.

Other threads submit and cancel requests through the thread's inbox. ``StepRunner`` embeds and samples; each token goes
into the queue of its request, from which a ``TextStream`` makes text.

An engine that ``recovers`` outlives its ring: when a stage is lost, or another thread calls ``suspend`` for a planned
change, its requests pause (``Suspension``), and ``resume`` gives it another ring, over which they go on.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from edgepp.backend.base import EmbeddingAndHead
from edgepp.backend.device import release_thread
from edgepp.engine.constrained_decoding import Matcher
from edgepp.engine.core import EngineCore, EngineLoad
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.rebuilding import Rebuilding
from edgepp.engine.request import Constraint, GenerateOptions
from edgepp.engine.request_isolation import token_ids
from edgepp.engine.ring import Failed, Rebuilt, Ring, RingEvent, StageInfo, StageStats
from edgepp.engine.sampling import Sampler
from edgepp.engine.speculation import Draft
from edgepp.engine.step_runner import StepRunner
from edgepp.engine.suspension import SuspendOrder, Suspension, poisoned
from edgepp.engine.timing import RecoveryKind, StageTimes, Timing
from edgepp.error_boundary import failure
from edgepp.errors import EdgeppError, StageLost, UsageError
from edgepp.wire.mailbox import Mailbox

_IDLE_S = 0.5
"""Seconds that the thread waits for an event at most; a new command ends the wait."""

Compile = Callable[[Constraint, str], Matcher]
"""Makes a matcher for a request of an owner."""


@dataclass(frozen=True)
class EngineParts:
    """The ring, model ends and draft of an engine; all belong to the engine thread."""

    ring: Ring
    ends: EmbeddingAndHead
    draft: Callable[[], Draft] | None = None
    """Makes the draft of one request; None for no guesses."""


Open = Callable[[], EngineParts]
"""Opens the ring and loads the model's ends; called on the engine thread, which uses them."""


@dataclass(frozen=True)
class _Cancel:
    request: EngineRequest


@dataclass(frozen=True)
class _Resume:
    ring: Ring
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class _Takeover:
    """A ring that takes over from the ``former`` one: its stages rebuild what they lack, then requests go on."""

    former: Ring
    rebuilding: Rebuilding
    done: Future[None]


@dataclass(frozen=True)
class _EndRequests:
    error: EdgeppError


_Command: TypeAlias = "EngineRequest | _Cancel | SuspendOrder | _Resume | _EndRequests | None"
"""An order of another thread; None ends the engine."""


class EngineLoop:
    """Runs requests through a ring until it is closed or, unless it recovers, the ring is lost."""

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
        self._eos = eos
        self._ids = itertools.count(1)
        self._inbox: Mailbox[_Command] = Mailbox()
        self._compiler = compiler
        self._budget = budget
        self._new_draft: Callable[[], Draft] | None = None
        self._recovers = recovers
        self._lost: EdgeppError | None = None
        self._takeover: _Takeover | None = None
        self._closing = EdgeppError("the engine was closed")
        opened: Future[tuple[StageInfo, ...]] = Future()
        self._thread = threading.Thread(target=self._main, args=(open_parts, opened), name="engine", daemon=True)
        self._thread.start()
        try:
            self.stages = opened.result()
        except BaseException:
            if opened.done():  # else the caller was interrupted
                self._thread.join()
                self._inbox.close()
            raise

    @property
    def lost(self) -> EdgeppError | None:
        """Why the engine has ended; None while it works, or waits for another ring."""
        return self._lost

    @property
    def suspended(self) -> EdgeppError | None:
        """Why requests pause; None while they are computed."""
        return self._suspension.reason

    @property
    def recoveries(self) -> dict[RecoveryKind, int]:
        """How often requests went on after a loss of stages."""
        return dict(self._suspension.recoveries)

    @property
    def stage_stats(self) -> list[StageStats]:
        """Each stage's latest reported state, first to last."""
        return self._ring.stage_stats()

    @property
    def load(self) -> EngineLoad:
        """How busy the engine is now."""
        return self._core.load

    @property
    def context(self) -> int:
        """Positions that one request may take at most: prompt and answer."""
        return min(stage.context for stage in self.stages)

    def submit(self, prompt: Sequence[int], options: GenerateOptions, owner: str = "") -> EngineRequest:
        """Begin a request, whose ``events`` then yield its tokens. Prefixes are shared between requests of one owner.

        Raises:
            UsageError: the prompt is empty or holds ids that the model does not have, prompt and answer do not fit into
                the context or the budget, or the constraint is invalid.
            Overloaded: many other constraints of the owner wait to be compiled.
            EdgeppError: the engine was closed.
        """
        self._check_size(len(prompt), options.max_tokens)
        ids = token_ids(prompt, self._vocabulary)
        options.sampling.check_bias(self._vocabulary)
        request = EngineRequest(
            id=next(self._ids),
            owner=owner,
            ids=ids,
            prompt_tokens=len(prompt),
            max_tokens=options.max_tokens,
            options=options,
            eos=frozenset() if options.ignore_eos else self._eos,
            timing=Timing(time.perf_counter(), stages=[StageTimes() for _ in self.stages]),
            sampler=Sampler(options.sampling, self._matcher(options, owner)),
            stages=self.stages,
        )
        try:
            self._inbox.put(request)
        except OSError:
            raise self._closing from None
        return request

    def _check_size(self, prompt: int, answer: int) -> None:
        if not prompt:
            raise UsageError("the prompt is empty", "say something")
        needed = prompt + answer
        if self._budget is not None and needed > self._budget:
            raise UsageError(
                f"a prompt of {prompt} tokens and an answer of {answer} need {needed} positions of KV cache,"
                f" and there are {self._budget} in all",
                "ask for fewer tokens, or run with more --max-sequences or --context",
            )
        if needed > self.context:
            raise UsageError(
                f"a prompt of {prompt} tokens and an answer of up to {answer} do not fit into the context of"
                f" {self.context} tokens",
                f"ask for at most {self.context - prompt} tokens, or shorten the prompt"
                if prompt < self.context
                else "shorten the prompt",
            )

    def _matcher(self, options: GenerateOptions, owner: str) -> Matcher | None:
        if options.constraint is None:
            return None
        if self._compiler is None:
            raise UsageError("this engine has no tokenizer to constrain answers with")
        return self._compiler(options.constraint, owner)

    def cancel(self, request: EngineRequest) -> None:
        """End a request early. Does nothing if the request or the engine has ended."""
        with suppress(OSError):
            self._inbox.put(_Cancel(request))

    def suspend(self, reason: EdgeppError, *, lost: bool) -> Future[None]:
        """Pause all requests until ``resume``: at once if stages are ``lost``, else once the ring is empty.

        The result is set when they pause.
        """
        order = SuspendOrder(reason, lost)
        self._order(order, order.done)
        return order.done

    def resume(self, ring: Ring) -> Future[None]:
        """Go on over another ``ring``, which the engine closes; the result is set when it has taken over."""
        order = _Resume(ring)
        self._order(order, order.done)
        return order.done

    def end_requests(self, error: EdgeppError) -> None:
        """End all present requests with ``error``; later ones are accepted."""
        with suppress(OSError):
            self._inbox.put(_EndRequests(error))

    def _order(self, command: _Command, done: Future[None]) -> None:
        try:
            self._inbox.put(command)
        except OSError:
            done.set_exception(self._closing)

    def close(self, reason: EdgeppError | None = None) -> None:
        """End every request with ``reason``, release the stages, and end the thread."""
        self._closing = reason or self._closing
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()
            self._inbox.close()

    def __enter__(self) -> EngineLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _main(self, open_parts: Open, opened: Future[tuple[StageInfo, ...]]) -> None:
        try:
            self._run(open_parts, opened)
        finally:
            release_thread()

    def _run(self, open_parts: Open, opened: Future[tuple[StageInfo, ...]]) -> None:
        try:
            self._set_up(open_parts())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
            opened.set_exception(error)
            return
        opened.set_result(self._ring.stages)
        try:
            while self._take_commands():
                sent = self._suspension.steps_may_go and self._send_step()
                self._runner.publish()
                for event in self._ring.poll(0.0 if sent else _IDLE_S):
                    self._handle(event)
                self._suspension.look()
                self._inspect_once()
                self._go_on_when_rebuilt()
                if (overdue := self._suspension.overdue) is not None:
                    self._end_all(overdue)
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: no request may be left waiting
            self._fail_all(failure(error, "the engine"))
        finally:
            self._fail_all(self._lost or self._closing)
            self._runner.publish()
            self._refuse_orders()
            self._ring.close()
            # Errors refer to the engine in cycles, which are collected late: free what is large now.
            del self._runner, self._ends, self._draft
            self._new_draft = None

    def _set_up(self, parts: EngineParts) -> None:
        self._ends, self._draft, self._vocabulary = parts.ends, parts.draft, parts.ends.vocabulary
        self._core: EngineCore[EngineRequest] = EngineCore(parts.ring.stages, self._budget)
        self._suspension = Suspension(self._core)
        self._take_ring(parts.ring)

    def _take_ring(self, ring: Ring) -> None:
        self._ring, self.stages, self._inspected = ring, ring.stages, False
        self.ring_identity = ring.orders.identity if isinstance(ring, NetworkRing) else None
        """By what the ring that replaces this one knows its stages; None for a ring in this process."""
        ring.wake_on(self._inbox)
        self._new_draft = self._draft if all(stage.rewinds for stage in ring.stages) else None
        self._runner = StepRunner(self._core, ring, self._ends)

    def _send_step(self) -> bool:
        self._admit()
        return self._runner.send_next()

    def _take_commands(self) -> bool:
        """Carry out the commands of other threads; False once the command to stop (None) has come."""
        for command in self._inbox.drain():
            match command:
                case None:
                    return False
                case EngineRequest():
                    self._add(command)
                case _Cancel():
                    self._runner.cancel(command.request)
                case SuspendOrder():
                    self._give_up(self._suspension.order(command), command.reason)
                case _Resume():
                    self._resume(command)
                case _EndRequests():
                    self._end_all(command.error)
        return True

    def _add(self, request: EngineRequest) -> None:
        if self._lost is not None:
            self._runner.end(request, self._lost)
            return
        try:
            self._core.add(request)
        except EdgeppError as error:
            self._runner.end(request, error)

    def _admit(self) -> None:
        for request in self._core.admit():
            if request.draft is None and self._new_draft is not None:
                request.draft = self._new_draft()
        for sequence in self._core.freed():
            self._ring.free(sequence)

    def _handle(self, event: RingEvent) -> None:
        if isinstance(event, Failed) and event.sequence is None:
            self._lose_ring(event.error)
        elif self._takeover is not None:
            self._takeover.rebuilding.take(event)
        elif self._suspension.reason is None and not isinstance(event, Rebuilt):  # else it is of stages that were left
            self._runner.take(event)

    def _lose_ring(self, error: EdgeppError) -> None:
        if not self._recovers:
            self._fail_all(error)
            return
        self._give_up(self._suspension.begin(error, lost=True), error)
        self._end_takeover(error)

    def _give_up(self, requests: Sequence[EngineRequest], reason: EdgeppError) -> None:
        for request in requests:
            self._runner.end(request, poisoned(reason, request))

    def _resume(self, order: _Resume) -> None:
        if self._lost is not None:
            order.ring.close()
            order.done.set_exception(self._lost)
            return
        replaced = StageLost("another pipeline took over")
        self._give_up(self._suspension.begin(replaced, lost=True), replaced)  # unless it is suspended, as it should be
        self._runner.publish()
        self._end_takeover(replaced)
        former = self._ring
        self._take_ring(order.ring)
        rebuilding = Rebuilding(order.ring, former, self._suspension.sequences, self._ends.embed)
        self._takeover = _Takeover(former, rebuilding, order.done)

    def _inspect_once(self) -> None:
        """Ask the stages of a ring that is left what they hold, for the ring that replaces it."""
        if self._suspension.reason is not None and not self._inspected and isinstance(self._ring, NetworkRing):
            self._inspected = True
            self._ring.orders.inspect()

    def _go_on_when_rebuilt(self) -> None:
        """Let the requests go on once the stages of a new ring hold what could be rebuilt."""
        takeover = self._takeover
        if takeover is None:
            return
        takeover.former.poll(0.0)  # which keeps its stages from forgetting what is moved
        if takeover.rebuilding.done:
            self._core.resume(self.stages, takeover.rebuilding.lengths)
            self._suspension.end(self.stages, takeover.rebuilding.how)
            self._end_takeover()

    def _end_takeover(self, error: EdgeppError | None = None) -> None:
        takeover, self._takeover = self._takeover, None
        if takeover is None:
            return
        takeover.former.close()
        if error is None:
            takeover.done.set_result(None)
        else:
            takeover.done.set_exception(error)

    def _end_all(self, error: EdgeppError) -> None:
        for request in (*self._core.live.values(), *self._core.waiting):
            self._runner.end(request, error)

    def _fail_all(self, error: EdgeppError) -> None:
        """End all requests with ``error``, and every request submitted from now on."""
        self._lost = error
        self._end_all(error)

    def _refuse_orders(self) -> None:
        """Tell the threads that wait for an order to be carried out that it will not be."""
        self._suspension.refuse(self._closing)
        self._end_takeover(self._closing)
        for command in self._inbox.drain():
            if isinstance(command, SuspendOrder | _Resume):
                command.done.set_exception(self._closing)
            if isinstance(command, _Resume):
                command.ring.close()
