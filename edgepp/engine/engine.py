"""The engine: one thread that turns prompts into tokens through a ring. Text is the business of ``Answer``.

It owns the truth of every request, its token ids. It embeds them, sends the steps that the scheduler names, applies
norm and head to what comes round, samples, and hands each token to the request's ``Answer``.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from edgepp.backend.base import Ends
from edgepp.backend.device import release_thread
from edgepp.engine.request import GenerateOptions, StageTimes, Timing
from edgepp.engine.ring import Failed, Gauge, Returned, Ring, RingEvent, Send, StageInfo
from edgepp.engine.sampling import REPETITION_CONTEXT, Sampler
from edgepp.engine.scheduler import Scheduler, Step
from edgepp.errors import EdgeppError, StageFault, UsageError
from edgepp.wire.transport import Mailbox

_IDLE_S = 0.5
_STEP_S = 2.0

FinishReason = Literal["stop", "length", "cancelled"]
Open = Callable[[], tuple[Ring, Ends]]
"""Makes the ring and loads the model's ends; called on the engine's own thread, which will use them."""


@dataclass
class Request:
    """One prompt and what has become of it. Its queue yields token ids, then a reason or an error."""

    id: int
    prompt: tuple[int, ...]
    options: GenerateOptions
    eos: frozenset[int]
    timing: Timing
    tokens: list[int] = field(default_factory=list)
    events: queue.SimpleQueue[int | FinishReason | EdgeppError] = field(default_factory=queue.SimpleQueue)

    @property
    def capacity(self) -> int:
        """The most positions that its caches may hold."""
        return len(self.prompt) + self.options.max_tokens


class Engine:
    """Runs requests through one ring until it is closed or the ring is lost."""

    def __init__(self, open_ring: Open, eos: frozenset[int]) -> None:
        """Start the engine thread and wait until its ring is up.

        Raises:
            EdgeppError: whatever kept the ring from coming up.
        """
        self._eos = eos
        self._ids = itertools.count(1)
        self._inbox: Mailbox[Request | int | None] = Mailbox()
        self._live: dict[int, tuple[Request, Sampler]] = {}
        self._news: list[tuple[Request, int | FinishReason | EdgeppError]] = []
        self._lost: EdgeppError | None = None
        opened: Future[tuple[StageInfo, ...]] = Future()
        self._thread = threading.Thread(target=self._main, args=(open_ring, opened), name="engine", daemon=True)
        self._thread.start()
        try:
            self.stages = opened.result()
        except EdgeppError:
            self._thread.join()
            self._inbox.close()
            raise

    @property
    def lost(self) -> EdgeppError | None:
        """Why the ring is gone; None while it works."""
        return self._lost

    @property
    def gauges(self) -> list[Gauge]:
        """Each stage's state as last heard."""
        return self._ring.gauges()

    @property
    def context(self) -> int:
        """The most positions that one request may take."""
        return min(stage.context for stage in self.stages)

    def submit(self, prompt: Sequence[int], options: GenerateOptions) -> Request:
        """Begin a request; read its ``events``.

        Raises:
            UsageError: the prompt is empty, or prompt and answer do not fit into the model's context.
        """
        if not prompt:
            raise UsageError("the prompt is empty", "say something")
        if len(prompt) + options.max_tokens > self.context:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens and an answer of up to {options.max_tokens} do not fit into"
                f" the context of {self.context} tokens",
                f"ask for at most {max(0, self.context - len(prompt))} tokens, or shorten the prompt",
            )
        timing = Timing(time.perf_counter(), stages=[StageTimes() for _ in self.stages])
        eos = frozenset() if options.ignore_eos else self._eos
        request = Request(next(self._ids), tuple(prompt), options, eos, timing)
        self._inbox.put(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a request early and free its slots on every stage."""
        self._inbox.put(request.id)

    def close(self) -> None:
        """End every request and the thread; stages are released."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()
            self._inbox.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _main(self, open_ring: Open, opened: Future[tuple[StageInfo, ...]]) -> None:
        try:
            self._serve(open_ring, opened)
        finally:
            release_thread()

    def _serve(self, open_ring: Open, opened: Future[tuple[StageInfo, ...]]) -> None:
        try:
            self._ring, self._ends = open_ring()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
            opened.set_exception(error)
            return
        self._ring.wake_on(self._inbox)
        self._scheduler = Scheduler(len(self._ring.stages), _chunk(self._ring.stages))
        opened.set_result(self._ring.stages)
        try:
            while self._obey():
                sent = self._send_next()
                self._publish()
                for event in self._ring.poll(0.0 if sent else _IDLE_S):
                    self._take(event)
        except Exception as error:  # noqa: BLE001 - the thread's boundary: no request may be left waiting
            self._lose(EdgeppError(f"the engine failed: {type(error).__name__}: {error}", "please report this"))
        finally:
            self._lose(self._lost or EdgeppError("the engine was closed"))
            self._publish()
            self._ring.close()

    def _obey(self) -> bool:
        """Take submissions (a request), cancellations (its id) and the order to stop (None)."""
        for command in self._inbox.drain():
            if command is None:
                return False
            if isinstance(command, int):
                self._finish(command, "cancelled")
            elif self._lost is not None:
                self._news.append((command, self._lost))
            else:
                self._live[command.id] = (command, Sampler(command.options.sampling))
                self._scheduler.add(command.id, len(command.prompt))
        return True

    def _publish(self) -> None:
        """Tell the readers what happened, after the next step has left: a reader that wakes takes the interpreter."""
        for request, event in self._news:
            request.events.put(event)
        self._news.clear()

    def _send_next(self) -> bool:
        step = self._scheduler.next_step()
        if step is None:
            return False
        request, _ = self._live[step.request]
        hidden = self._ends.embed(self._tokens_of(request, step), step.start)
        self._ring.send(Send(step.request, step.start, request.capacity, int(step.last), hidden))
        return True

    @staticmethod
    def _tokens_of(request: Request, step: Step) -> Sequence[int]:
        prompt = len(request.prompt)
        if step.start >= prompt:
            return request.tokens[step.start - prompt : step.stop - prompt]
        return request.prompt[step.start : step.stop]

    def _take(self, event: RingEvent) -> None:
        match event:
            case Failed(sequence=None):
                self._lose(event.error)
            case Failed(sequence=int() as sequence):
                self._fail(sequence, event.error)
            case Returned():
                if event.sequence in self._live:
                    self._returned(event)

    def _returned(self, event: Returned) -> None:
        request, sampler = self._live[event.sequence]
        self._account(request, event)
        if not self._scheduler.returned(event.sequence, event.end):
            return
        if len(event.hidden) != 1:
            self._fail(event.sequence, StageFault(f"{self._ring.stages[-1]} returned no hidden state to sample from"))
            return
        logits = self._ends.logits(event.hidden)[0]
        recent = (*request.prompt[-REPETITION_CONTEXT:], *request.tokens[-REPETITION_CONTEXT:])
        token = sampler(logits, recent)
        if token in request.eos:
            self._finish(request.id, "stop")
            return
        request.timing.token(time.perf_counter())
        request.tokens.append(token)
        self._news.append((request, token))
        if len(request.tokens) == request.options.max_tokens:
            self._finish(request.id, "length")
        else:
            self._scheduler.sampled(request.id)

    def _account(self, request: Request, event: Returned) -> None:
        """Add a step's time to its stages; time on the wire goes to each by its measured share of the way."""
        decoding = event.end > len(request.prompt)
        wire_s = max(0.0, event.ring_s - sum(event.compute_s))
        way_s = sum(stage.hop_s for stage in self._ring.stages)
        for times, stage, compute_s in zip(request.timing.stages, self._ring.stages, event.compute_s, strict=True):
            if decoding:
                times.decode_s += compute_s
                times.wire_s += wire_s * stage.hop_s / way_s if way_s else 0.0
            else:
                times.prefill_s += compute_s

    def _finish(self, request_id: int, reason: FinishReason) -> None:
        if request_id in self._live:
            self._news.append((self._release(request_id), reason))

    def _fail(self, request_id: int, error: EdgeppError) -> None:
        if request_id in self._live:
            self._news.append((self._release(request_id), error))

    def _release(self, request_id: int) -> Request:
        request, _ = self._live.pop(request_id)
        self._scheduler.remove(request_id)
        self._ring.free(request_id)
        return request

    def _lose(self, error: EdgeppError) -> None:
        """Fail what is live with ``error``, and whatever is submitted from now on."""
        self._lost = error
        for request_id in list(self._live):
            self._fail(request_id, error)


def _chunk(stages: Sequence[StageInfo]) -> int:
    """Tokens of a prefill chunk.

    A pipeline waits one chunk a stage to fill, so it takes them half as long as is efficient; and none takes longer to
    go round than ``_STEP_S`` by the stages' measured speeds, so that a wedged stage is told from a slow one in time.
    """
    efficient = min(stage.chunk for stage in stages)
    wanted = efficient if len(stages) == 1 else efficient // 2
    token_s = sum(stage.prefill_s for stage in stages)
    return max(1, min(wanted, int(_STEP_S / token_s) if token_s else wanted))
