"""Questions of every kind, asked of the coordinator and over HTTP, and their answers."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
import openai

from edgepp.coordinator.client import connect_coordinator
from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.engine.timing import Recovery
from edgepp.model.text.conversation import Conversation

_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
_READ_S = 60.0
"""Longest silence of an HTTP stream."""


@dataclass(frozen=True)
class RepeatableQuestion:
    """One question; the same question always has the same answer."""

    text: str
    max_tokens: int
    http: bool = False
    choices: int = 1
    seed: int | None = None
    schema: bool = False

    @property
    def kind(self) -> str:
        """The kind of the question, for people."""
        way = "HTTP" if self.http else "Python"
        what = "schema" if self.schema else "sampled" if self.seed is not None else "greedy"
        return f"{way} {what}, {self.max_tokens} tokens{f', n = {self.choices}' if self.choices > 1 else ''}"


QUESTIONS = (
    RepeatableQuestion("Name three colours.", 6),
    RepeatableQuestion("What is the capital of France?", 16),
    RepeatableQuestion("Write a sentence about the sea and the wind.", 48),
    RepeatableQuestion("Tell me a name and an age.", 40, schema=True),
    RepeatableQuestion("Why do birds sing?", 24, seed=4),
    RepeatableQuestion("word " * 120 + "What was the word?", 12),
    RepeatableQuestion("Count from one to ten.", 12, http=True),
    RepeatableQuestion("Describe a winter morning in the mountains.", 48, http=True),
    RepeatableQuestion("Tell me a name and an age.", 40, http=True, schema=True),
    RepeatableQuestion("Invent a title for a book.", 16, http=True, seed=11, choices=2),
    RepeatableQuestion("Say something about rivers.", 24, http=True, seed=5),
)


@dataclass
class Heard:
    """The answer to one question, as far as it has come."""

    choices: list[list[Any]]
    """Token ids of each choice, or over HTTP its characters."""
    ended: list[str | None]
    """Finish reason of each choice; None for a choice that has not ended."""
    cancelled: bool = False
    began_s: float = field(default_factory=time.monotonic)
    recoveries: list[Recovery] = field(default_factory=list)
    """Recoveries of a whole answer; unknown over HTTP."""
    came_s: list[float] = field(default_factory=list)
    """Time of each piece, in seconds of ``time.monotonic``."""

    @classmethod
    def of(cls, question: RepeatableQuestion) -> Heard:
        """An answer to ``question`` of which nothing has come."""
        return cls([[] for _ in range(question.choices)], [None] * question.choices)

    @property
    def longest_gap_s(self) -> float:
        """Longest time between two pieces; 0 for fewer than two."""
        return max((b - a for a, b in zip(self.came_s, self.came_s[1:], strict=False)), default=0.0)

    def differs_from(self, right: Heard) -> bool:
        """Whether a choice is not the beginning of the right choice, or is cut although it ended without error."""
        for got, ended, expected in zip(self.choices, self.ended, right.choices, strict=True):
            whole = ended is not None and not self.cancelled
            if got != (expected if whole else expected[: len(got)]):
                return True
        return False


def ask(question: RepeatableQuestion, url: str, heard: Heard, cancel_after: int | None = None) -> None:
    """Ask, and fill ``heard`` as pieces come; ``cancel_after`` is a number of pieces.

    Raises:
        EdgeppError: the answer cannot be finished.
        openai.APIError: the same over HTTP.
    """
    pieces = _over_http(question, url, heard) if question.http else _of_coordinator(question, heard, cancel_after)
    with closing(pieces):
        for number, _ in enumerate(pieces, 1):
            heard.came_s.append(time.monotonic())
            if number == cancel_after:
                heard.cancelled = True
                if question.http:
                    return


def _of_coordinator(question: RepeatableQuestion, heard: Heard, cancel_after: int | None) -> Generator[str, None, None]:
    sampling = SamplingOptions() if question.seed is None else SamplingOptions(temperature=0.9, seed=question.seed)
    constraint = Constraint("json_schema", json.dumps(_SCHEMA)) if question.schema else None
    options = GenerateOptions(
        question.max_tokens, ignore_eos=not question.schema, sampling=sampling, constraint=constraint
    )
    with connect_coordinator() as line:
        answer = line.ask(Conversation.of(question.text), options)
        for number, piece in enumerate(answer, 1):
            heard.choices[0] = list(answer.token_ids)
            yield piece
            if number == cancel_after:
                answer.cancel()
        heard.choices[0] = list(answer.token_ids)
        heard.ended[0] = answer.finish_reason
        heard.recoveries = answer.timing.recoveries
        heard.cancelled = heard.cancelled and answer.finish_reason == "cancelled"


def _over_http(question: RepeatableQuestion, url: str, heard: Heard) -> Generator[str, None, None]:
    options: dict[str, Any] = {"max_tokens": question.max_tokens, "n": question.choices, "temperature": 0.0}
    if question.seed is not None:
        options |= {"temperature": 0.9, "seed": question.seed}
    if question.schema:
        options["response_format"] = {"type": "json_schema", "json_schema": {"name": "person", "schema": _SCHEMA}}
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=httpx.Timeout(_READ_S)) as client:
        create: Any = client.chat.completions.create
        messages = [{"role": "user", "content": question.text}]
        with closing(create(model="smollm2-135m", messages=messages, stream=True, **options)) as stream:
            yield from _chunks(stream, heard)


def _chunks(stream: Any, heard: Heard) -> Iterator[str]:
    for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                heard.choices[choice.index] += choice.delta.content
                yield choice.delta.content
            if choice.finish_reason:
                heard.ended[choice.index] = choice.finish_reason
