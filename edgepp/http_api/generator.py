"""The answer to a ``GenerationRequest`` as events: choices, tools, waiting, errors and cancelling, for all APIs."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Protocol

from edgepp.engine.request import GenerateOptions
from edgepp.error_boundary import explained
from edgepp.errors import (
    ContextExceeded,
    EdgeppError,
    ModelError,
    NotReady,
    Overloaded,
    PlanError,
    PoisonedRequest,
    StageLost,
    UsageError,
)
from edgepp.http_api.answer_events import Choice, PlainParser, total
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import IDLE_S, Ended, GenerationEvent, GenerationRequest, Idle, Queued, Started
from edgepp.http_api.model_text import ModelText
from edgepp.http_api.owner_threads import OwnerThreads
from edgepp.model.text.conversation import Conversation, TokenIds
from edgepp.python_api.answer import Answer
from edgepp.python_api.question import choice_options
from edgepp.tool_calls.tool_use import ToolUse
from edgepp.tracing.request_trace import RequestTrace

LOAD_WAIT_S = 20.0
"""Seconds that a request waits for a cluster that loads or plans again, before it is refused."""
_HELD_LOOK_S = 0.1
BUSY_RETRY_S = 1.0
LOADING_RETRY_S = 5.0
"""Seconds after which a client may ask again, where no estimate is known."""


class Asked(Protocol):
    """Interface of a cluster for the generator."""

    async def prepare(self) -> None:
        """Make ``text`` in a thread, unless that is done."""

    @property
    def text(self) -> ModelText:
        """Text of the model that is served now."""

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""

    @property
    def reason(self) -> str:
        """Reason why answers wait; empty while the cluster can answer."""

    @property
    def is_held(self) -> bool:
        """Whether requests wait until the model has changed, since they need the tokenizer of the new model."""

    @property
    def retry_after_s(self) -> float:
        """Estimated seconds until a cluster that loads is ready."""

    def begin_trace(self, request: GenerationRequest, began_s: float) -> RequestTrace | None:
        """Begin the trace of a request that came at ``began_s``; None if it is not traced."""

    def ask(
        self,
        text: ModelText,
        prompt: TokenIds,
        options: GenerateOptions,
        request: GenerationRequest,
        wait_s: float,
        trace: RequestTrace | None,
    ) -> Answer:
        """An answer to a prompt that ``text`` has encoded, for ``request``."""


@dataclass(frozen=True)
class Generator:
    """Generator of the answers to requests on a cluster."""

    cluster: Asked
    load_wait_s: float = LOAD_WAIT_S
    idle_s: float = IDLE_S
    threads: OwnerThreads = field(default_factory=OwnerThreads)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """The events of the answer. Closing the iterator cancels the answer on every stage.

        Raises:
            RequestError: the request cannot be answered, or the answer ended early.
        """
        choices: list[Choice] = []
        wake = _Wake(self.idle_s)
        started = False
        try:
            if reason := self.cluster.reason:
                yield Queued(reason)
            until_s = time.monotonic() + self.load_wait_s
            while self.cluster.is_held and time.monotonic() < until_s:  # noqa: ASYNC110 - another thread changes it
                await asyncio.sleep(_HELD_LOOK_S)
            await self.cluster.prepare()  # the model may have changed meanwhile
            choices = await self._choices(request, until_s)
            for choice in choices:
                choice.answer.start(wake.set)
            while not all(choice.ended for choice in choices):
                came = await wake.wait()
                events = [event for choice in choices if not choice.ended for event in choice.take()]
                if not started and (prompt_tokens := max(choice.answer.prompt_tokens for choice in choices)):
                    started = True
                    yield Started(prompt_tokens)
                for event in events:
                    yield event
                for choice in choices:
                    if choice.error is not None:
                        raise choice.error
                if not came:
                    yield Idle() if started else Queued(self.cluster.reason or "the prompt is being read")
            yield Ended(total([choice.usage for choice in choices]))
        except Exception as error:
            raise self._request_error(error) from error
        finally:
            wake.end()
            await _stop(choices)

    async def _choices(self, request: GenerationRequest, until_s: float) -> list[Choice]:
        """The choices of a request, not begun; each waits for the cluster until ``until_s``.

        Raises:
            EdgeppError: the prompt, the options or the tools cannot be used.
        """
        began_s = time.perf_counter()
        text, in_turns = self.cluster.text, isinstance(request.prompt, Conversation)
        tool_use = request.tool_use if in_turns else ToolUse()
        context = self.cluster.context
        trace = self.cluster.begin_trace(request, began_s)
        encoded = await self.threads.run(
            request.owner, lambda: text.encode(request.prompt, tool_use, context, request.owner)
        )
        if trace is not None:
            trace.span("tokenise", began_s, time.perf_counter(), len(encoded.ids))
        options, opening = request.options, encoded.opening
        if in_turns:
            constraint = text.form.constraint(tool_use, opening, options.constraint)
            options = replace(options, constraint=constraint)
        return [
            Choice(
                number,
                self.cluster.ask(text, tuple(encoded.ids), one, request, until_s - time.monotonic(), trace),
                text.form.parser(tool_use, opening) if in_turns else PlainParser(),
                text.spell,
                began_s,
                tuple(encoded.ids) if options.prompt_logprobs is not None else (),
                options.sampling.logprobs is not None,
            )
            for number, one in enumerate(choice_options(request.num_choices, options))
        ]

    def _request_error(self, error: Exception) -> RequestError:
        found = request_error(error if isinstance(error, EdgeppError) else explained(error))
        if found.kind == "loading":
            found.retry_after_s = self.cluster.retry_after_s
        return found


async def _stop(choices: list[Choice]) -> None:
    for choice in choices:
        if choice.answer.finish_reason is None:
            choice.answer.cancel()  # all of them before the first wait, which may be cancelled
    for choice in choices:
        await choice.answer.stop()


def request_error(error: EdgeppError) -> RequestError:
    """An error of the cluster or the model in terms of a request."""
    sentence, hint = str(error), error.hint
    match error:
        case RequestError():
            return error
        case ContextExceeded():
            return RequestError(
                "context_length_exceeded",
                sentence,
                hint,
                prompt_tokens=error.prompt_tokens,
                context=error.context,
            )
        case UsageError():
            return RequestError("invalid_request", sentence, hint, parameter=error.parameter)
        case ModelError() | PoisonedRequest():  # clients repeat what is answered by 500 or 503
            return RequestError("invalid_request", sentence, hint)
        case NotReady():
            return RequestError("loading", sentence, hint, retry_after_s=LOADING_RETRY_S)
        case Overloaded():
            return RequestError("rate_limited", sentence, hint, retry_after_s=BUSY_RETRY_S)
        case StageLost() | PlanError():  # a plan error ends an answer if the nodes that are left cannot hold the model
            return RequestError("overloaded", sentence, hint, retry_after_s=LOADING_RETRY_S)
        case _:
            return RequestError("internal", sentence, hint)


class _Wake:
    """A signal that pieces of any of a request's answers have come, which the request awaits for a limited time.

    One timer serves all waits, since a timer per token would cost a tenth of what HTTP adds to a token.
    """

    def __init__(self, idle_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._idle_s = idle_s
        self._waits_since_s = math.inf
        """When the present wait began, by the loop's clock; infinity while nobody waits."""
        self._came = False
        self._timer = self._loop.call_later(idle_s, self._look)

    def set(self) -> None:
        """Note that pieces have come."""
        self._came = True
        self._event.set()

    async def wait(self) -> bool:
        """Wait until pieces have come; False if none have for ``idle_s`` seconds."""
        self._waits_since_s = self._loop.time()
        await self._event.wait()
        self._waits_since_s = math.inf
        self._event.clear()
        came, self._came = self._came, False
        return came

    def end(self) -> None:
        """Wake nobody any more."""
        self._timer.cancel()

    def _look(self) -> None:
        left_s = self._waits_since_s + self._idle_s - self._loop.time()
        if left_s <= 0:
            self._event.set()
            left_s = self._idle_s
        self._timer = self._loop.call_later(min(left_s, self._idle_s), self._look)
