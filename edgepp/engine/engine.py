"""The engine: one thread that turns prompts into tokens through a ring. Text is the business of ``Answer``.

It owns the truth of every request, its token ids. It embeds them, sends the steps that the scheduler names, applies
norm and head to what comes round, samples, and hands each token to the request's ``Answer``.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgepp.backend.base import Ends
from edgepp.backend.device import release_thread
from edgepp.engine.constraint import Matcher
from edgepp.engine.request import Constraint, GenerateOptions, StageTimes, Timing
from edgepp.engine.ring import Failed, Gauge, Returned, Ring, RingEvent, Send, SendBatch, StageInfo
from edgepp.engine.sampling import REPETITION_CONTEXT, Sampled, Sampler
from edgepp.engine.scheduler import Chunk, Scheduler
from edgepp.errors import EdgeppError, StageFault, UsageError
from edgepp.model.checkpoint import Array
from edgepp.wire.transport import Mailbox

MOST_WAITING = 256
"""Requests that wait for room; more are refused."""
_IDLE_S = 0.5
_STEP_S = 2.0
_STEPS_BESIDE = 1
_LEAST_BESIDE = 8

Compile = Callable[[Constraint], Matcher]
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
    sampler: Sampler
    tokens: list[int] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)
    """One for each token, where log-probabilities were asked for."""
    events: queue.SimpleQueue[int | FinishReason | EdgeppError] = field(default_factory=queue.SimpleQueue)

    @property
    def capacity(self) -> int:
        """The most positions that its caches may hold."""
        return len(self.prompt) + self.options.max_tokens


class Engine:
    """Runs requests through one ring until it is closed or the ring is lost."""

    def __init__(
        self, open_ring: Open, eos: frozenset[int], budget: int | None = None, compiler: Compile | None = None
    ) -> None:
        """Start the engine thread and wait until its ring is up.

        All live requests together may reach ``budget`` positions; more of them wait their turn. ``compiler`` makes
        the matchers of constrained requests.

        Raises:
            EdgeppError: whatever kept the ring from coming up.
        """
        self._eos = eos
        self._ids = itertools.count(1)
        self._inbox: Mailbox[Request | int | None] = Mailbox()
        self._compiler = compiler
        self._live: dict[int, Request] = {}
        self._waiting: deque[Request] = deque()
        self._budget = budget
        self._news: list[tuple[Request, int | FinishReason | EdgeppError]] = []
        self._lost: EdgeppError | None = None
        self._closing = EdgeppError("the engine was closed")
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
        needed = len(prompt) + options.max_tokens
        if self._budget is not None and needed > self._budget:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens and an answer of {options.max_tokens} need {needed} positions of KV"
                f" cache, and there are {self._budget} in all",
                "ask for fewer tokens, or run with more --slots or --context",
            )
        if needed > self.context:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens and an answer of up to {options.max_tokens} do not fit into"
                f" the context of {self.context} tokens",
                f"ask for at most {max(0, self.context - len(prompt))} tokens, or shorten the prompt",
            )
        timing = Timing(time.perf_counter(), stages=[StageTimes() for _ in self.stages])
        eos = frozenset() if options.ignore_eos else self._eos
        sampler = Sampler(options.sampling, self._matcher(options))
        request = Request(next(self._ids), tuple(prompt), options, eos, timing, sampler)
        self._inbox.put(request)
        return request

    def _matcher(self, options: GenerateOptions) -> Matcher | None:
        if options.constraint is None:
            return None
        if self._compiler is None:
            raise UsageError("this engine has no tokenizer to constrain answers with")
        return self._compiler(options.constraint)

    def cancel(self, request: Request) -> None:
        """End a request early and free its slots on every stage."""
        self._inbox.put(request.id)

    def close(self, reason: EdgeppError | None = None) -> None:
        """End every request, for this ``reason``, and the thread; stages are released."""
        self._closing = reason or self._closing
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
        stages = self._ring.stages
        self._scheduler = Scheduler(len(stages), _chunk(stages), _chunk_beside(stages))
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
            self._lose(self._lost or self._closing)
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
            elif len(self._waiting) >= MOST_WAITING:
                error = EdgeppError(f"{MOST_WAITING} requests are waiting already", "ask again later")
                self._news.append((command, error))
            else:
                self._waiting.append(command)
        self._admit()
        return True

    def _admit(self) -> None:
        """Begin with those who have waited longest, as far as the budget of positions goes."""
        while self._waiting and self._fits(self._waiting[0]):
            request = self._waiting.popleft()
            self._live[request.id] = request
            self._scheduler.add(request.id, len(request.prompt))

    def _fits(self, request: Request) -> bool:
        held = sum(live.capacity for live in self._live.values())
        return self._budget is None or not self._live or held + request.capacity <= self._budget

    def _publish(self) -> None:
        """Tell the readers what happened, after the next step has left: a reader that wakes takes the interpreter."""
        for request, event in self._news:
            request.events.put(event)
        self._news.clear()

    def _send_next(self) -> bool:
        step = self._scheduler.next_step()
        if step is None:
            return False
        if isinstance(step, Chunk):
            request = self._live[step.request]
            hidden = self._ends.embed(request.prompt[step.start : step.stop], step.start)
            self._ring.send(Send(step.request, step.start, request.capacity, int(step.last), hidden))
        else:
            tokens = [self._newest(number, at) for number, at in zip(step.requests, step.positions, strict=True)]
            self._ring.send(SendBatch(step.requests, step.positions, self._embed(tokens, step.positions)))
        return True

    def _embed(self, tokens: Sequence[int], positions: Sequence[int]) -> Array:
        """Hidden states (B, D) of one token each of several sequences."""
        if len(tokens) > 1 and self._ends.positional:
            return np.concatenate([self._ends.embed([token], at) for token, at in zip(tokens, positions, strict=True)])
        return self._ends.embed(tokens, positions[0])

    def _newest(self, number: int, position: int) -> int:
        request = self._live[number]
        return request.tokens[position - len(request.prompt)]

    def _take(self, event: RingEvent) -> None:
        match event:
            case Failed(sequence=None):
                self._lose(event.error)
            case Failed(sequence=int() as sequence):
                self._fail(sequence, event.error)
            case Returned():
                self._returned(event)

    def _returned(self, event: Returned) -> None:
        """Sample for every sequence whose step brought its next token."""
        wanted: list[tuple[int, Request]] = []
        for row, (number, end) in enumerate(zip(event.sequences, event.ends, strict=True)):
            if number not in self._live:
                continue
            request = self._live[number]
            self._account(request, event, decoding=end > len(request.prompt))
            if self._scheduler.returned(number, end):
                wanted.append((row, request))
        if not wanted:
            return
        if len(event.hidden) != len(event.sequences):
            for _, request in wanted:
                self._fail(request.id, StageFault(f"{self._ring.stages[-1]} returned no hidden state to sample from"))
            return
        rows = [row for row, _ in wanted]
        hidden = event.hidden if len(rows) == len(event.hidden) else event.hidden[rows]
        for logits, (_, request) in zip(self._ends.logits(hidden), wanted, strict=True):
            try:
                self._sample(request, logits)
            except EdgeppError as error:
                self._fail(request.id, error)

    def _sample(self, request: Request, logits: Array) -> None:
        """Draw a request's next token.

        Raises:
            EdgeppError: its options do not fit the model, or its constraint became too complex.
        """
        recent = (*request.prompt[-REPETITION_CONTEXT:], *request.tokens[-REPETITION_CONTEXT:])
        sampled = request.sampler(logits, recent)
        token = sampled.token
        if token in request.eos:
            self._finish(request.id, "stop")
            return
        request.timing.token(time.perf_counter())
        request.tokens.append(token)
        if request.options.sampling.logprobs is not None:
            request.sampled.append(sampled)
        self._news.append((request, token))
        if request.sampler.done:
            self._finish(request.id, "stop")
        elif len(request.tokens) == request.options.max_tokens:
            self._finish(request.id, "length")
        else:
            self._scheduler.sampled(request.id)

    def _account(self, request: Request, event: Returned, *, decoding: bool) -> None:
        """Add a step's time to its stages; time on the wire goes to each by its measured share of the way."""
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
        for request in [request for request in self._waiting if request.id == request_id]:
            self._waiting.remove(request)
            self._news.append((request, reason))

    def _fail(self, request_id: int, error: EdgeppError) -> None:
        if request_id in self._live:
            self._news.append((self._release(request_id), error))

    def _release(self, request_id: int) -> Request:
        request = self._live.pop(request_id)
        self._scheduler.remove(request_id)
        self._ring.free(request_id)
        return request

    def _lose(self, error: EdgeppError) -> None:
        """Fail what is live with ``error``, and whatever is submitted from now on."""
        self._lost = error
        for request_id in list(self._live):
            self._fail(request_id, error)
        self._news += [(request, error) for request in self._waiting]
        self._waiting.clear()


def _chunk(stages: Sequence[StageInfo]) -> int:
    """Tokens of a prefill chunk.

    A pipeline waits one chunk a stage to fill, so it takes them half as long as is efficient; and none takes longer to
    go round than ``_STEP_S`` by the stages' measured speeds, so that a wedged stage is told from a slow one in time.
    """
    efficient = min(stage.chunk for stage in stages)
    wanted = efficient if len(stages) == 1 else efficient // 2
    token_s = sum(stage.prefill_s for stage in stages)
    return max(1, min(wanted, int(_STEP_S / token_s) if token_s else wanted))


def _chunk_beside(stages: Sequence[StageInfo]) -> int:
    """Tokens of a chunk that goes between decode steps: it takes about as long as ``_STEPS_BESIDE`` of them."""
    slowest = max(stages, key=lambda stage: stage.decode_s)
    wanted = _STEPS_BESIDE * slowest.decode_s / slowest.prefill_s if slowest.prefill_s else 0.0
    return max(_LEAST_BESIDE, int(wanted))
