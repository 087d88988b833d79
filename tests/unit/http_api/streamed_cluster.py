"""A cluster for the generator whose streams a test writes, holds and releases."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

from edgepp.engine.request import GenerateOptions
from edgepp.engine.sampling import Sampled
from edgepp.engine.text_stream import TextPiece
from edgepp.engine.timing import Timing
from edgepp.http_api.generation import (
    GenerationEvent,
    GenerationRequest,
    TextDelta,
)
from edgepp.http_api.generator import Generator
from edgepp.http_api.model_text import ModelText
from edgepp.model.text.conversation import Conversation, EncodedPrompt, Prompt
from edgepp.python_api.answer import Answer, Begun
from edgepp.tool_calls.tool_use import (
    AnswerPart,
    Text,
    Tool,
    ToolUse,
)
from tests.waiting import PATIENCE_S

PROMPT = Conversation([{"role": "user", "content": "hi"}])
NEVER_S = 3600.0
TOOLS = ToolUse((Tool("add"),))


class Stream:
    """An answer that gives ``steps``: text, an error, or an event to wait for."""

    def __init__(self, steps: Sequence[Any], reason: str = "stop") -> None:
        self._steps, self._reason = steps, reason
        self.stopped = threading.Event()
        self.token_ids: list[int] = []
        self.sampled: list[Sampled] = []
        self.prompt_sampled: list[Sampled] = []
        self.spelled: dict[int, str] = {}
        self.finish_reason: Any = None
        self.stop_string: str | None = None
        self.prompt_tokens = 0
        self.timing = Timing(0.0, reused=4)
        self.stages = ()
        self.over = threading.Event()

    def pieces(self) -> Iterator[TextPiece]:
        try:
            yield from self._pieces()
        finally:
            self.over.set()

    def _pieces(self) -> Iterator[TextPiece]:
        for step in self._steps:
            if isinstance(step, threading.Event):
                while not step.wait(0.01) and not self.stopped.is_set():
                    continue
            elif isinstance(step, BaseException):
                raise step
            else:
                if not self.prompt_tokens:
                    self.prompt_tokens = 7
                    yield TextPiece("")
                piece = step if isinstance(step, TextPiece) else TextPiece(step)
                self.token_ids.append(len(self.token_ids))
                yield piece
            if self.stopped.is_set():
                break
        self.finish_reason = "cancelled" if self.stopped.is_set() else self._reason

    def cancel(self) -> None:
        self.stopped.set()


class Parser:
    """Looks up the parts of each text; at the end come those of the empty text."""

    def __init__(self, parts: dict[str, list[AnswerPart]]) -> None:
        self._parts = parts

    def add(self, text: str) -> list[AnswerPart]:
        if text not in self._parts:
            raise ValueError(f"no parts of {text}")
        return self._parts[text]

    def finish(self) -> list[AnswerPart]:
        return self._parts.get("", [])


@dataclass
class Form:
    """A tool format with scripted parts."""

    parts: dict[str, list[AnswerPart]] | None = None
    thinks: bool = False

    def prepare(self, conversation: Conversation, _: ToolUse) -> Conversation:
        return conversation

    def constraint(self, *arguments: Any) -> Any:
        return arguments[2]

    def parser(self, *_: Any) -> Any:
        return Whole() if self.parts is None else Parser(self.parts)


class Whole:
    def add(self, text: str) -> list[AnswerPart]:
        return [Text(text)]

    def finish(self) -> list[AnswerPart]:
        return []


@dataclass
class Cluster:
    """Answers question i by stream i."""

    streams: list[Stream]
    form: Form = field(default_factory=Form)
    refuses: Exception | None = None
    reason: str = ""
    is_held: bool = False
    context: int = 100
    retry_after_s: float = 9.0
    asked: list[GenerateOptions] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)

    async def prepare(self) -> None:
        pass

    @property
    def text(self) -> ModelText:
        return cast("ModelText", self)

    def encode(self, *_: Prompt | ToolUse | int | str) -> EncodedPrompt:
        if self.refuses is not None:
            raise self.refuses
        return EncodedPrompt([1, 2, 3])

    def spell(self, token: int) -> bytes:
        return b"<%d>" % token

    def begin_trace(self, *_: Any) -> None:
        pass

    def ask(
        self, _text: Any, prompt: Any, options: GenerateOptions, request: GenerationRequest, _wait_s: float, _: Any
    ) -> Answer:
        assert prompt == (1, 2, 3)
        stream = self.streams[len(self.asked)]
        self.asked.append(options)
        self.owners.append(request.owner)
        return Answer(lambda: nullcontext(Begun(cast("Any", stream), stream.cancel)))


def request(**more: Any) -> GenerationRequest:
    return GenerationRequest(PROMPT, GenerateOptions(), owner="ann", **more)


async def events_of(cluster: Cluster, asked: GenerationRequest | None = None) -> list[GenerationEvent]:
    generator = Generator(cluster, idle_s=NEVER_S)
    return [event async for event in generator.generate(asked or request())]


def run(cluster: Cluster, asked: GenerationRequest | None = None) -> list[GenerationEvent]:
    return asyncio.run(asyncio.wait_for(events_of(cluster, asked), PATIENCE_S))


def text_of(events: list[GenerationEvent], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.choice == choice)
