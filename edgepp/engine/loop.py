"""The engine: one thread that turns prompts into tokens through a ring. Text is the business of ``TextStream``.

It owns the truth of every request, its token ids. It embeds them, sends the steps that the scheduler names, applies
norm and head to what comes round, samples, and hands each token to the request's ``TextStream``.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from edgepp.backend.base import Ends
from edgepp.backend.device import release_thread
from edgepp.engine.chunk_sizer import ChunkSizer
from edgepp.engine.constraint import Matcher
from edgepp.engine.draft import Draft, SpeculationCosts
from edgepp.engine.engine_request import EngineRequest, Event
from edgepp.engine.failure import failure, request_failure
from edgepp.engine.guarded import GuardedEnds, Rows, token_ids
from edgepp.engine.ledger import Ledger, Reuse
from edgepp.engine.request import Constraint, FinishReason, GenerateOptions, StageTimes, Timing
from edgepp.engine.ring import Failed, Returned, Ring, RingEvent, Send, SendBatch, StageInfo, StageStats
from edgepp.engine.sampling import Sampler
from edgepp.engine.scheduler import Chunk, MicroBatch, Scheduler
from edgepp.errors import EdgeppError, StageFault, UsageError
from edgepp.model.weights.checkpoint import Array
from edgepp.wire.mailbox import Mailbox

_IDLE_S = 0.5

Compile = Callable[[Constraint], Matcher]


@dataclass(frozen=True)
class EngineParts:
    """What an engine runs with; all of it belongs to the engine's thread."""

    ring: Ring
    ends: Ends
    draft: Callable[[], Draft] | None = None
    """Makes what guesses for one request."""


Open = Callable[[], EngineParts]
"""Opens the ring and loads the model's ends; called on the engine's own thread, which will use them."""


@dataclass(frozen=True)
class Load:
    """How much is asked of an engine."""

    live: int
    waiting: int
    kept: int
    """KV positions kept for prompts to come."""
    reuse: Reuse
    preempted: int
    """Times that a request lost its KV cache to others and began again."""


@dataclass(frozen=True)
class _Cancel:
    request: EngineRequest


class EngineLoop:
    """Runs requests through one ring until it is closed or the ring is lost."""

    def __init__(
        self, open_parts: Open, eos: frozenset[int], budget: int | None = None, compiler: Compile | None = None
    ) -> None:
        """Start the engine thread and wait until its ring is up.

        All sequences together hold at most ``budget`` positions; who finds no room waits. ``compiler`` makes the
        matchers of constrained requests.

        Raises:
            EdgeppError: whatever kept the ring from coming up.
        """
        self._eos = eos
        self._ids = itertools.count(1)
        self._inbox: Mailbox[EngineRequest | _Cancel | None] = Mailbox()
        self._compiler = compiler
        self._budget = budget
        self._news: list[tuple[EngineRequest, Event]] = []
        self._preempted = 0
        self._new_draft: Callable[[], Draft] | None = None
        self._lost: EdgeppError | None = None
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
        """Why the ring is gone; None while it works."""
        return self._lost

    @property
    def stage_stats(self) -> list[StageStats]:
        """Each stage's state as last heard."""
        return self._ring.stage_stats()

    @property
    def load(self) -> Load:
        """How much is asked of it now."""
        ledger = self._ledger
        return Load(len(ledger.live), len(ledger.waiting), ledger.kept, ledger.reuse, self._preempted)

    @property
    def context(self) -> int:
        """The most positions that one request may take."""
        return min(stage.context for stage in self.stages)

    def submit(self, prompt: Sequence[int], options: GenerateOptions, owner: str = "") -> EngineRequest:
        """Begin a request; read its ``events``. What the same ``owner`` asked before need not be computed again.

        Raises:
            UsageError: the prompt is empty or has ids that are none of the model's tokens, or prompt and answer do not
                fit into the model's context.
            EdgeppError: the engine was closed.
        """
        if not len(prompt):
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
                f"ask for at most {self.context - len(prompt)} tokens, or shorten the prompt"
                if len(prompt) < self.context
                else "shorten the prompt",
            )
        ids = token_ids(prompt, self._vocabulary)
        options.sampling.check_bias(self._vocabulary)
        request = EngineRequest(
            id=next(self._ids),
            owner=owner,
            ids=ids,
            prompt=len(prompt),
            options=options,
            eos=frozenset() if options.ignore_eos else self._eos,
            timing=Timing(time.perf_counter(), stages=[StageTimes() for _ in self.stages]),
            sampler=Sampler(options.sampling, self._matcher(options)),
        )
        try:
            self._inbox.put(request)
        except OSError:
            raise self._closing from None
        return request

    def _matcher(self, options: GenerateOptions) -> Matcher | None:
        if options.constraint is None:
            return None
        if self._compiler is None:
            raise UsageError("this engine has no tokenizer to constrain answers with")
        return self._compiler(options.constraint)

    def cancel(self, request: EngineRequest) -> None:
        """End a request early; one that has ended, with the engine perhaps, stays as it is."""
        with suppress(OSError):
            self._inbox.put(_Cancel(request))

    def close(self, reason: EdgeppError | None = None) -> None:
        """End every request, for this ``reason``, and the thread; stages are released."""
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
            self._serve(open_parts, opened)
        finally:
            release_thread()

    def _serve(self, open_parts: Open, opened: Future[tuple[StageInfo, ...]]) -> None:
        try:
            self._set_up(open_parts())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
            opened.set_exception(error)
            return
        opened.set_result(self._ring.stages)
        try:
            while self._obey():
                sent = self._send_next()
                self._publish()
                for event in self._ring.poll(0.0 if sent else _IDLE_S):
                    self._take(event)
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: no request may be left waiting
            self._lose(failure(error, "the engine"))
        finally:
            self._lose(self._lost or self._closing)
            self._publish()
            self._ring.close()
            # Errors refer to the engine in cycles, which are collected late: what is large must not wait for that.
            del self._ends
            self._new_draft = None

    def _set_up(self, parts: EngineParts) -> None:
        self._ring, self._ends = parts.ring, GuardedEnds(parts.ends)
        self._vocabulary = self._ends.vocabulary
        self._ring.wake_on(self._inbox)
        stages = self._ring.stages
        rewinds = all(stage.rewinds for stage in stages)
        self._new_draft = parts.draft if rewinds else None
        self._way_s = sum(stage.hop_s for stage in stages)
        plain_s = sum(stage.decode_s for stage in stages) + self._way_s
        self._costs = SpeculationCosts(plain_s, sum(stage.prefill_s for stage in stages))
        self._sizer = ChunkSizer(stages)
        self._scheduler = Scheduler(len(stages), self._sizer)
        spare = min(stage.context for stage in stages)
        self._ledger = Ledger(self._budget, spare, self._scheduler.sent, shares=rewinds)

    def _obey(self) -> bool:
        """Take submissions, cancellations and the order to stop (None)."""
        for command in self._inbox.drain():
            if command is None:
                return False
            if isinstance(command, _Cancel):
                self._finish(command.request, "cancelled")
            elif self._lost is not None:
                self._news.append((command, self._lost))
            else:
                try:
                    self._ledger.wait(command)
                except EdgeppError as error:
                    self._news.append((command, error))
        self._balance()
        return True

    def _balance(self) -> None:
        """Begin with those who fit, and let those give way who do not fit any more."""
        self._give_way(self._ledger.make_room())
        for request, held in self._ledger.begin():
            if request.draft is None and self._new_draft is not None:
                request.draft = self._new_draft()
            self._scheduler.add(request.sequence, len(request.ids), held)
        self._give_way(self._ledger.squeeze())
        for sequence in self._ledger.freed():
            self._ring.free(sequence)

    def _give_way(self, requests: Iterator[EngineRequest]) -> None:
        for request in requests:
            self._preempted += 1
            self._scheduler.remove(request.sequence)

    def _publish(self) -> None:
        """Tell the readers what happened, after the next step has left: a reader that wakes takes the interpreter."""
        for request, event in self._news:
            request.events.put(event)
        self._news.clear()

    def _send_next(self) -> bool:
        match self._scheduler.next_step():
            case None:
                return False
            case Chunk() as chunk:
                self._send_chunk(chunk)
            case MicroBatch(requests=(sequence,), positions=(position,), guesses=True):
                self._send_guesses(self._ledger.live[sequence], position)
            case MicroBatch() as batch:
                self._send_batch(batch)
        return True

    def _send_chunk(self, chunk: Chunk) -> None:
        request = self._ledger.live[chunk.request]
        try:
            hidden = self._ends.embed(request.ids[chunk.start : chunk.stop], chunk.start)
            step = Send(chunk.request, chunk.start, request.capacity, int(chunk.last), hidden, request.source)
            self._ring.send(step)
        except BaseException as error:  # noqa: BLE001 - the boundary of one request
            self._abandon(request, error, "sending its prompt")

    def _send_guesses(self, request: EngineRequest, position: int) -> None:
        """Send the newest token with guesses of what follows it, which the same trip round the ring verifies."""
        request.sent_s = time.perf_counter()
        try:
            guesses = request.guess(self._costs, self._vocabulary)
            tokens = (request.ids[position], *guesses)
            hidden = self._ends.embed(tokens, position)
            request.guesses = guesses
            self._ring.send(Send(request.sequence, position, request.capacity, len(tokens), hidden))
        except BaseException as error:  # noqa: BLE001 - the boundary of one request
            self._abandon(request, error, "sending its newest token")

    def _send_batch(self, batch: MicroBatch) -> None:
        at = list(zip(batch.requests, batch.positions, strict=True))
        tokens = [self._ledger.live[sequence].ids[position] for sequence, position in at]
        good: list[tuple[int, int, Array]] = []
        for (sequence, position), row in zip(at, self._ends.embed_each(tokens, batch.positions), strict=True):
            if isinstance(row, BaseException):
                self._abandon(self._ledger.live[sequence], row, "sending its newest token")
            else:
                good.append((sequence, position, row))
        if not good:
            return
        sequences, positions, rows = zip(*good, strict=True)
        try:
            self._ring.send(SendBatch(sequences, positions, np.concatenate(rows)))
        except BaseException as error:  # noqa: BLE001 - the boundary of this batch's requests
            for sequence in sequences:
                self._abandon(self._ledger.live[sequence], error, "sending its newest token")

    def _take(self, event: RingEvent) -> None:
        match event:
            case Failed(sequence=None):
                self._lose(event.error)
            case Failed(sequence=int() as sequence):
                self._failed(sequence, event.error)
            case Returned():
                self._returned(event)

    def _returned(self, event: Returned) -> None:
        """Sample for every sequence whose step brought its next token."""
        wanted: list[tuple[EngineRequest, slice]] = []
        row = 0
        self._learn(event)
        for sequence in event.sequences:
            request = self._ledger.live.get(sequence)
            rows = 1 + (len(request.guesses) if request is not None else 0)
            if request is None:
                self._ledger.returned(sequence)
            else:
                request.source = 0
                self._account(request, event)
                if self._scheduler.returned(sequence):
                    wanted.append((request, slice(row, row + rows)))
            row += rows
        if not wanted:
            return
        if wanted[-1][1].stop > len(event.hidden):
            for request, _ in wanted:
                self._failed(request.sequence, StageFault(f"{self._ring.stages[-1]} returned too few hidden states"))
            return
        parts = [part for _, part in wanted]
        for (request, _), logits in zip(
            wanted, self._ends.logits(event.hidden, parts, self._ring.stages[-1]), strict=True
        ):
            self._sample(request, logits)

    def _sample(self, request: EngineRequest, logits: Rows) -> None:
        """Draw a request's next token, and those that it guessed right."""
        try:
            if isinstance(logits, BaseException):
                raise logits
            tokens, reason = request.take(logits)
        except BaseException as error:  # noqa: BLE001 - the boundary of one request
            self._abandon(request, error, "drawing its next token")
            return
        self._news += [(request, token) for token in tokens]
        if request.decoding:
            request.speculation.judged(len(request.guesses), len(tokens))
            if request.sent_s:
                self._costs.note(len(request.guesses), time.perf_counter() - request.sent_s)
        request.decoding, request.guesses, request.sent_s = True, (), 0.0
        if tokens:
            self._scheduler.sampled(request.sequence, len(tokens))
        if reason is not None:
            self._end(request, reason)

    def _learn(self, event: Returned) -> None:
        """Let the lengths of chunks follow what steps take."""
        request = self._ledger.live.get(event.sequences[0])
        if request is None:
            return
        if not request.decoding:
            self._sizer.prefilled(event.positions, event.compute_s)
        elif event.positions == 1:  # guesses make a step longer
            self._sizer.decoded(event.compute_s)

    def _account(self, request: EngineRequest, event: Returned) -> None:
        """Add a step's time to its stages; time on the wire goes to each by its measured share of the way."""
        wire_s = max(0.0, event.ring_s - sum(event.compute_s))
        for times, stage, compute_s in zip(request.timing.stages, self._ring.stages, event.compute_s, strict=True):
            if request.decoding:
                times.decode_s += compute_s
                times.wire_s += wire_s * stage.hop_s / self._way_s if self._way_s else 0.0
            else:
                times.prefill_s += compute_s

    def _finish(self, request: EngineRequest, reason: FinishReason) -> None:
        if self._ledger.withdraw(request) or self._ledger.live.get(request.sequence) is request:
            self._end(request, reason)

    def _end(self, request: EngineRequest, event: FinishReason | EdgeppError) -> None:
        """Tell how a request ended, and keep what the stages hold of it for prompts to come."""
        self._news.append((request, event))
        if request.sequence:
            held = self._scheduler.sent(request.sequence)
            self._ledger.leave(request, held, self._scheduler.remove(request.sequence))
        request.stop_guessing()

    def _abandon(self, request: EngineRequest, error: BaseException, doing: str) -> None:
        """End a request alone whose step cannot be done, and keep nothing of it: what the stages hold may be wrong."""
        self._drop(request, request_failure(error, request.id, doing))

    def _drop(self, request: EngineRequest, error: EdgeppError) -> None:
        self._scheduler.remove(request.sequence)
        self._ledger.lost(request.sequence)
        request.sequence = 0
        self._end(request, error)

    def _failed(self, sequence: int, error: EdgeppError) -> None:
        """The stages have dropped a sequence.

        What began as a copy, or while others' caches took memory, begins once more on its own.
        """
        request = self._ledger.live.get(sequence)
        if request is None:
            self._ledger.lost(sequence)
            return
        if not request.alone and (self._ledger.clear() or request.source):
            self._scheduler.remove(sequence)
            request.alone = True
            self._ledger.again(request)
            return
        self._drop(request, error)

    def _lose(self, error: EdgeppError) -> None:
        """Fail what is under way with ``error``, and whatever is submitted from now on."""
        self._lost = error
        for request in (*self._ledger.live.values(), *self._ledger.waiting):
            self._ledger.withdraw(request)
            self._end(request, error)
