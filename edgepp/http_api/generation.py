"""The request model and the events that all APIs share. Pure data.

A file of an API decodes a body into a ``GenerationRequest``, and encodes the ``GenerationEvent``s of the answer.

    Queued* ► Started ► (ReasoningDelta | TextDelta | ToolCallStarted, ToolCallDelta*, ToolCallEnded | Idle)*
            ► ChoiceEnded per choice ► Ended

Each event names its choice, 0 to n-1; events of several choices are interleaved. ``Idle`` and ``Queued`` come whenever
nothing else has come for ``IDLE_S`` seconds, so that an API can keep its connection alive. An answer that fails raises
a ``RequestError`` in place of the next event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from edgepp.engine.request import GenerateOptions
from edgepp.engine.timing import Recovery
from edgepp.model.text.conversation import Prompt
from edgepp.tool_calls.tool_use import ToolUse

IDLE_S = 5.0
"""Seconds without another event after which ``Queued`` or ``Idle`` comes."""


@dataclass(frozen=True)
class GenerationRequest:
    """One question, of any API."""

    prompt: Prompt
    options: GenerateOptions
    """``max_tokens`` may be larger than what fits: the answer is cut to what fits."""
    model: str = ""
    """The model that the client named, resolved by ``ModelService.served``."""
    num_choices: int = 1
    tool_use: ToolUse = field(default_factory=ToolUse)
    owner: str = ""
    """Owner of the question: the name of the API key, for fair shares and the prefix cache."""
    request_id: str = ""
    """The ``x-request-id`` of the HTTP request, for logs."""


@dataclass(frozen=True)
class Usage:
    """Tokens and times of an answer; in ``Ended``, of all choices together."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that the stages still held from an earlier request."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    queue_s: float = 0.0
    """Seconds from the request to the submission to the engine."""
    prompt_s: float = 0.0
    """Seconds from the submission to the first token."""
    decode_s: float = 0.0
    """Seconds from the first token to the last."""
    recoveries: tuple[Recovery, ...] = ()
    """Losses of stages that the answer survived, in order."""


@dataclass(frozen=True)
class TokenLogprob:
    """A sampled token with its log-probability, and the likeliest tokens at its place, likeliest first."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    raw: bytes | None = None
    """The bytes of the token, which may be a part of a character, where they are not those of ``text``."""
    top_raw: tuple[bytes, ...] = ()
    """The bytes of each token in ``top``, where they are not those of the texts."""
    begin: int = 0
    """Characters of the answer in front of the token's text."""

    @property
    def utf8(self) -> list[int]:
        """The bytes of the token."""
        return list(self.text.encode() if self.raw is None else self.raw)

    @property
    def rivals(self) -> list[tuple[str, float, list[int]]]:
        """Text, log-probability and bytes of each token in ``top``."""
        raws = self.top_raw or tuple(text.encode() for text, _ in self.top)
        return [(text, logprob, list(raw)) for (text, logprob), raw in zip(self.top, raws, strict=True)]


@dataclass(frozen=True)
class Queued:
    """The answer has not begun: the cluster loads or plans."""

    reason: str


@dataclass(frozen=True)
class Started:
    """The prompt was accepted; its prefill begins."""

    prompt_tokens: int


@dataclass(frozen=True)
class PromptLogprobs:
    """The log-probabilities of the prompt's own tokens, before the text of the choice, if they were asked for."""

    choice: int
    first: str
    """The text of the first token, before which nothing stands, so that it has no log-probability."""
    tokens: tuple[TokenLogprob, ...]
    """The tokens of the prompt after the first one."""
    first_raw: bytes | None = None
    """The bytes of the first token, where they are not those of ``first``."""

    @property
    def utf8(self) -> list[bytes]:
        """The bytes of each token of the prompt."""
        first = self.first.encode() if self.first_raw is None else self.first_raw
        return [first, *(bytes(token.utf8) for token in self.tokens)]


@dataclass(frozen=True)
class Idle:
    """Nothing new for ``IDLE_S`` seconds: the prompt is still being read, or a token takes long."""


@dataclass(frozen=True)
class TextDelta:
    """More text of the answer; ``logprobs`` of its tokens if they were asked for."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ReasoningDelta:
    """More text of the reasoning before the answer, of a model that thinks."""

    choice: int
    text: str


@dataclass(frozen=True)
class ToolCallStarted:
    """A tool call begins: the number ``call``, from 0, of its choice."""

    choice: int
    call: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallDelta:
    """More of the arguments of a tool call, as JSON text."""

    choice: int
    call: int
    arguments: str


@dataclass(frozen=True)
class ToolCallEnded:
    """A tool call is whole; ``arguments`` are all of its deltas joined: the JSON text of one object."""

    choice: int
    call: int
    arguments: str


FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True)
class ChoiceEnded:
    """One choice is whole. ``length`` comes before ``tool_calls``, and ``tool_calls`` before ``stop``."""

    choice: int
    finish_reason: FinishReason
    stop_string: str | None = None
    """The stop string that ended the text, if one did."""
    usage: Usage = field(default_factory=Usage)
    token_ids: tuple[int, ...] = ()
    """The tokens of the choice, of which text, reasoning and calls are made."""


@dataclass(frozen=True)
class Ended:
    """All choices are whole; the prompt counts once in ``usage``."""

    usage: Usage


GenerationEvent: TypeAlias = (
    Queued
    | Started
    | Idle
    | PromptLogprobs
    | TextDelta
    | ReasoningDelta
    | ToolCallStarted
    | ToolCallDelta
    | ToolCallEnded
    | ChoiceEnded
    | Ended
)
