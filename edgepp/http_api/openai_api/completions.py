"""``POST /v1/completions``: texts continued, streamed and whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgepp.http_api.collected_answer import CollectedAnswer, CollectedChoice, collected
from edgepp.http_api.endpoint import Handler, begun, json_response, read_body, stream_response, unless_gone
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    GenerationEvent,
    GenerationRequest,
    Idle,
    PromptLogprobs,
    Queued,
    ReasoningDelta,
    Started,
    TextDelta,
    Usage,
)
from edgepp.http_api.iterator_closing import closing
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.openai_api.answer_head import DONE, KEEP_ALIVE, AnswerHead, frame, new_head
from edgepp.http_api.openai_api.chat_completions import openai_finish
from edgepp.http_api.openai_api.completions_request import CompletionBody, generation_requests
from edgepp.http_api.openai_api.errors import in_band_error, served
from edgepp.http_api.openai_api.logprobs import legacy_logprobs
from edgepp.http_api.openai_api.usage import timings, usage_body
from edgepp.http_api.traced_writes import name_answer
from edgepp.model.text.conversation import Prompt

_NUM_AT_ONCE = 8
"""Prompts of one request that are answered at a time, so that others find room."""


def completions(service: ModelService) -> Handler:
    """The handler over ``service``."""

    async def handle(request: Request) -> Response:
        body = await read_body(request, CompletionBody)
        model = served(service, body.model)
        asked = generation_requests(body, model, request)
        head = new_head("cmpl", model, body.model)
        name_answer(request, head.id)
        echoes = [await _echo(service, one.prompt, one.owner) if body.echo else "" for one in asked]
        answers = _Answers(service, asked, only_echo=body.max_tokens == 0)
        if not body.stream:
            whole = [_likeliest(one, body.num_told) for one in await unless_gone(request, answers.whole())]
            return json_response(whole_completion(whole, echoes, head, body))
        chunks = [CompletionChunks(head, body, n * body.num_told, echo) for n, echo in enumerate(echoes)]
        first = await begun(request, answers.events(0))
        return stream_response(_frames(answers, first, chunks), "text/event-stream", in_band_error)

    return handle


@dataclass(frozen=True)
class _Answers:
    """The answers to the prompts of one request."""

    service: ModelService
    asked: Sequence[GenerationRequest]
    only_echo: bool
    """Whether no token is wanted, as ``max_tokens: 0`` says."""

    def events(self, number: int) -> AsyncIterator[GenerationEvent]:
        request = self.asked[number]
        if not self.only_echo:
            return self.service.generate(request)
        if request.options.prompt_logprobs is None:
            return self._nothing(request)
        return _without_answer(self.service.generate(request))

    async def whole(self) -> list[CollectedAnswer]:
        turns = asyncio.Semaphore(_NUM_AT_ONCE)

        async def one(number: int) -> CollectedAnswer:
            async with turns:
                return await collected(self.events(number), self.asked[number].num_choices)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number)) for number in range(len(self.asked))]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _nothing(self, request: GenerationRequest) -> AsyncIterator[GenerationEvent]:
        usage = Usage(prompt_tokens=len(await self.service.encode(request.prompt, owner=request.owner)))
        yield Started(usage.prompt_tokens)
        for choice in range(request.num_choices):
            yield ChoiceEnded(choice, "length", usage=usage)
        yield Ended(usage)


async def _without_answer(events: AsyncIterator[GenerationEvent]) -> AsyncIterator[GenerationEvent]:
    """The events of an answer whose prompt alone is wanted."""
    async with closing(events):
        async for event in events:
            match event:
                case TextDelta():
                    continue
                case ChoiceEnded():
                    yield replace(event, finish_reason="length", usage=replace(event.usage, completion_tokens=0))
                case Ended():
                    yield Ended(replace(event.usage, completion_tokens=0))
                case _:
                    yield event


async def _echo(service: ModelService, prompt: Prompt, owner: str) -> str:
    return prompt if isinstance(prompt, str) else await service.decode(await service.encode(prompt, owner=owner), owner)


def _likeliest(answer: CollectedAnswer, num_choices: int) -> CollectedAnswer:
    """The choices with the highest log-probability per token, the likeliest first; the usage is that of all."""
    if len(answer.choices) <= num_choices:
        return answer
    return replace(answer, choices=sorted(answer.choices, key=_mean_logprob, reverse=True)[:num_choices])


def _mean_logprob(choice: CollectedChoice) -> float:
    logprobs = [token.logprob for token in choice.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0


def whole_completion(
    answers: Sequence[CollectedAnswer], echoes: Sequence[str], head: AnswerHead, body: CompletionBody
) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    choices = [(echo, choice) for answer, echo in zip(answers, echoes, strict=True) for choice in answer.choices]
    usage = summed([answer.usage for answer in answers])
    return head.fields("text_completion") | {
        "choices": [_choice(number, echo, choice, body) for number, (echo, choice) in enumerate(choices)],
        "usage": usage_body(usage),
        "timings": timings(usage),
    }


def summed(usages: Sequence[Usage]) -> Usage:
    """Tokens and times of several answers, summed."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        queue_s=sum(usage.queue_s for usage in usages),
        prompt_s=sum(usage.prompt_s for usage in usages),
        decode_s=sum(usage.decode_s for usage in usages),
        recoveries=tuple(recovery for usage in usages for recovery in usage.recoveries),
    )


def _choice(number: int, echo: str, choice: CollectedChoice, body: CompletionBody) -> dict[str, Any]:
    return {
        "index": number,
        "text": echo + choice.reasoning + choice.text,
        "logprobs": None if body.logprobs is None else legacy_logprobs(choice.logprobs, len(echo), choice.prompt, echo),
        "finish_reason": openai_finish(choice.finish_reason),
    }


async def _frames(
    answers: _Answers, first: AsyncIterator[GenerationEvent], all_chunks: Sequence[CompletionChunks]
) -> AsyncIterator[bytes]:
    usages: list[Usage] = []
    for number, chunks in enumerate(all_chunks):
        async with closing(first if number == 0 else answers.events(number)) as events:
            async for event in events:
                if isinstance(event, Ended):
                    usages.append(event.usage)
                yield b"".join(chunks.frames(event))
    yield b"".join([*all_chunks[0].usage(summed(usages)), DONE])


@dataclass
class CompletionChunks:
    """Events of one prompt as chunks, whose choices are numbered from ``first_choice`` on."""

    head: AnswerHead
    body: CompletionBody
    first_choice: int = 0
    echo: str = ""
    _begun: set[int] = field(default_factory=set)
    """Choices whose echo was sent."""

    def frames(self, event: GenerationEvent) -> list[bytes]:
        """The server-sent events for one event."""
        match event:
            case Queued() | Idle():
                return [KEEP_ALIVE]
            case PromptLogprobs():
                return self._echoed(event.choice, legacy_logprobs((), 0, event, self.echo))
            case TextDelta() | ReasoningDelta() if event.text or (isinstance(event, TextDelta) and event.logprobs):
                return [*self._echoed(event.choice), self._text(event)]
            case ChoiceEnded():
                ended = self._chunk(event.choice, "", finish_reason=openai_finish(event.finish_reason))
                return [*self._echoed(event.choice), frame(ended | {"timings": timings(event.usage)})]
            case _:
                return []

    def usage(self, usage: Usage) -> list[bytes]:
        """The chunk at the end of the stream, if it was asked for."""
        if not self.body.include_usage:
            return []
        more = {"choices": [], "usage": usage_body(usage), "timings": timings(usage)}
        return [frame(self.head.fields("text_completion") | more)]

    def _echoed(self, choice: int, logprobs: dict[str, Any] | None = None) -> list[bytes]:
        if choice in self._begun:
            return []
        self._begun.add(choice)
        return [frame(self._chunk(choice, self.echo, logprobs))] if self.echo or logprobs else []

    def _text(self, event: TextDelta | ReasoningDelta) -> bytes:
        logprobs = None
        if isinstance(event, TextDelta) and self.body.logprobs is not None:
            logprobs = legacy_logprobs(event.logprobs, len(self.echo))
        return frame(self._chunk(event.choice, event.text, logprobs))

    def _chunk(
        self, choice: int, text: str, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        one = {
            "index": self.first_choice + choice,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        usage = {"usage": None} if self.body.include_usage else {}
        return self.head.fields("text_completion") | {"choices": [one]} | usage
