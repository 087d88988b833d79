"""``POST /v1/chat/completions``: chunks of a streamed answer, and the whole answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgepp.http_api.collected_answer import CollectedAnswer, CollectedChoice, collected
from edgepp.http_api.endpoint import Handler, begun, json_response, read_body, stream_response, unless_gone
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    FinishReason,
    GenerationEvent,
    Idle,
    PromptLogprobs,
    Queued,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.iterator_closing import closing
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.openai_api.answer_head import DONE, KEEP_ALIVE, AnswerHead, frame, new_head
from edgepp.http_api.openai_api.chat_request import ChatBody, generation_request
from edgepp.http_api.openai_api.errors import in_band_error, served
from edgepp.http_api.openai_api.logprobs import chat_logprobs
from edgepp.http_api.openai_api.usage import timings, usage_body
from edgepp.http_api.traced_writes import name_answer


def chat_completions(service: ModelService) -> Handler:
    """The handler over ``service``."""

    async def handle(request: Request) -> Response:
        body = await read_body(request, ChatBody)
        model = served(service, body.model)
        asked = generation_request(body, model, request)
        events = service.generate(asked)
        head = new_head("chatcmpl", model, body.model)
        name_answer(request, head.id)
        if not body.stream:
            answer = await unless_gone(request, collected(events, asked.num_choices))
            return json_response(whole_answer(answer, head, body))
        chunks = ChatChunks(head, body)
        return stream_response(_frames(await begun(request, events), chunks), "text/event-stream", in_band_error)

    return handle


def openai_finish(reason: FinishReason) -> str:
    """OpenAI's name of a finish reason; an answer that the cluster cancelled counts as cut by its length."""
    return "length" if reason == "cancelled" else reason


def whole_answer(answer: CollectedAnswer, head: AnswerHead, body: ChatBody) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    return head.fields("chat.completion") | {
        "choices": [_choice(number, choice, body) for number, choice in enumerate(answer.choices)],
        "usage": usage_body(answer.usage),
        "timings": timings(answer.usage),
    }


def _choice(number: int, choice: CollectedChoice, body: ChatBody) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text or (None if choice.calls else ""),
        "refusal": None,
    }
    if choice.reasoning:
        message |= _reasoning(choice.reasoning, body)
    if choice.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.calls
        ]
    return {
        "index": number,
        "message": message,
        "logprobs": chat_logprobs(choice.logprobs) if body.logprobs else None,
        "finish_reason": openai_finish(choice.finish_reason),
    }


def _reasoning(text: str, body: ChatBody) -> dict[str, str]:
    fields = {"reasoning_content": text}
    return fields | {"reasoning": text} if body.include_reasoning else fields


async def _frames(events: AsyncIterator[GenerationEvent], chunks: ChatChunks) -> AsyncIterator[bytes]:
    async with closing(events):
        async for event in events:
            yield b"".join(chunks.frames(event))


@dataclass
class ChatChunks:
    """Events as chunks. A choice begins with a chunk that has its role and no token, at its first event or earlier."""

    head: AnswerHead
    body: ChatBody
    _num_begun: int = 0

    def frames(self, event: GenerationEvent) -> list[bytes]:
        """The server-sent events for one event."""
        match event:
            case Queued() | Idle():
                return [KEEP_ALIVE]
            case Started() | PromptLogprobs() | ToolCallEnded():
                return []
            case Ended():
                return [*self._usage(event.usage), DONE]
            case ChoiceEnded():
                return [*self._role(event.choice, ""), self._finish(event)]
            case TextDelta():
                return self._text(event)
            case ReasoningDelta():
                return [*self._role(event.choice, ""), self._delta(event.choice, _reasoning(event.text, self.body))]
            case ToolCallStarted() | ToolCallDelta():
                return [*self._role(event.choice, None), self._delta(event.choice, {"tool_calls": [_call(event)]})]

    def _text(self, event: TextDelta) -> list[bytes]:
        if not event.text and not event.logprobs:
            return []
        logprobs = chat_logprobs(event.logprobs) if event.logprobs and self.body.logprobs else None
        return [*self._role(event.choice, ""), self._delta(event.choice, {"content": event.text}, logprobs)]

    def _role(self, choice: int, content: str | None) -> list[bytes]:
        # In order of their numbers, since the openai SDK appends each new choice to its list.
        new = range(self._num_begun, choice + 1)
        self._num_begun = max(self._num_begun, choice + 1)
        return [self._delta(one, {"role": "assistant", "content": content if one == choice else ""}) for one in new]

    def _delta(self, choice: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> bytes:
        return self._chunk([{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": None}])

    def _finish(self, event: ChoiceEnded) -> bytes:
        reason = openai_finish(event.finish_reason)
        choice = {"index": event.choice, "delta": {}, "logprobs": None, "finish_reason": reason}
        return self._chunk([choice], timings=timings(event.usage))

    def _usage(self, usage: Usage) -> list[bytes]:
        if not self.body.include_usage:
            return []
        return [self._chunk([], usage=usage_body(usage), timings=timings(usage))]

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        # As OpenAI does: null in each chunk before the one with the usage, and no key at all if nobody asked.
        usage = {"usage": None} if self.body.include_usage else {}
        return frame(self.head.fields("chat.completion.chunk") | {"choices": choices} | usage | more)


def _call(event: ToolCallStarted | ToolCallDelta) -> dict[str, Any]:
    if isinstance(event, ToolCallDelta):
        return {"index": event.call, "function": {"arguments": event.arguments}}
    return {
        "index": event.call,
        "id": event.id,
        "type": "function",
        "function": {"name": event.name, "arguments": ""},
    }
