"""The engine thread: turns prompts into tokens through a ring, step by step as ``EngineCore`` decides.

Other threads submit and cancel requests through the thread's inbox. ``StepRunner`` embeds and samples; each token goes
into the queue of its request, from which a ``TextStream`` makes text.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from edgepp.backend.base import EmbeddingAndHead
from edgepp.backend.device import release_thread
from edgepp.engine.constrained_decoding import Matcher
from edgepp.engine.core import EngineCore, EngineLoad
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.request import Constraint, GenerateOptions, StageTimes, Timing
from edgepp.engine.request_isolation import token_ids
from edgepp.engine.ring import Failed, Ring, RingEvent, StageInfo, StageStats
from edgepp.engine.sampling import Sampler
from edgepp.engine.speculation import Draft
from edgepp.engine.step_runner import StepRunner
from edgepp.error_boundary import failure
from edgepp.errors import EdgeppError, UsageError
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


class EngineLoop:
    """Runs requests through one ring until it is closed or the ring is lost."""

    def __init__(
        self, open_parts: Open, eos: frozenset[int], budget: int | None = None, compiler: Compile | None = None
    ) -> None:
        """Start the engine thread and wait until its ring is up.

        All sequences together hold at most ``budget`` positions; requests that find no room wait. ``eos`` holds the
        token ids that end an answer; ``compiler`` makes the matchers of constrained requests.

        Raises:
            EdgeppError: the ring cannot be opened, or the model's ends cannot be loaded.
        """
        self._eos = eos
        self._ids = itertools.count(1)
        self._inbox: Mailbox[EngineRequest | _Cancel | None] = Mailbox()
        self._compiler = compiler
        self._budget = budget
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
                self._admit()
                sent = self._runner.send_next()
                self._runner.publish()
                for event in self._ring.poll(0.0 if sent else _IDLE_S):
                    self._handle(event)
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: no request may be left waiting
            self._fail_all(failure(error, "the engine"))
        finally:
            self._fail_all(self._lost or self._closing)
            self._runner.publish()
            self._ring.close()
            # Errors refer to the engine in cycles, which are collected late: free what is large now.
            del self._runner
            self._new_draft = None

    def _set_up(self, parts: EngineParts) -> None:
        self._ring, self._vocabulary = parts.ring, parts.ends.vocabulary
        self._ring.wake_on(self._inbox)
        self._new_draft = parts.draft if all(stage.rewinds for stage in self._ring.stages) else None
        self._core: EngineCore[EngineRequest] = EngineCore(self._ring.stages, self._budget)
        self._runner = StepRunner(self._core, self._ring, parts.ends)

    def _take_commands(self) -> bool:
        """Handle submissions and cancellations; False once the command to stop (None) has come."""
        for command in self._inbox.drain():
            if command is None:
                return False
            if isinstance(command, _Cancel):
                self._runner.cancel(command.request)
            elif self._lost is not None:
                self._runner.end(command, self._lost)
            else:
                try:
                    self._core.add(command)
                except EdgeppError as error:
                    self._runner.end(command, error)
        return True

    def _admit(self) -> None:
        for request in self._core.admit():
            if request.draft is None and self._new_draft is not None:
                request.draft = self._new_draft()
        for sequence in self._core.freed():
            self._ring.free(sequence)

    def _handle(self, event: RingEvent) -> None:
        if isinstance(event, Failed) and event.sequence is None:
            self._fail_all(event.error)
        else:
            self._runner.take(event)

    def _fail_all(self, error: EdgeppError) -> None:
        """End all requests with ``error``, and every request submitted from now on."""
        self._lost = error
        for request in (*self._core.live.values(), *self._core.waiting):
            self._runner.end(request, error)
