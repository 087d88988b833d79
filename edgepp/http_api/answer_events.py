"""The events of one choice, from the pieces of its answer: text, reasoning, tool calls, log-probabilities, the end."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from edgepp.engine.text_stream import SpelledToken, TextPiece
from edgepp.errors import EdgeppError
from edgepp.http_api.content_tokens import ContentTokens
from edgepp.http_api.generation import (
    ChoiceEnded,
    FinishReason,
    GenerationEvent,
    PromptLogprobs,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.model.text.conversation import TokenIds
from edgepp.python_api.answer import Answer
from edgepp.tool_calls.formats import AnswerParser
from edgepp.tool_calls.tool_use import AnswerPart, CallArguments, CallEnded, CallStarted, Reasoning, Text

Spell = Callable[[int], bytes]
"""The bytes of a token's text."""


@dataclass
class Choice:
    """One of the answers to a request. ``take`` makes events of its pieces; pieces that come together are joined."""

    number: int
    answer: Answer
    parser: AnswerParser
    spell: Spell
    began_s: float
    """Time at which the request came, in seconds of ``time.perf_counter``."""
    prompt: TokenIds = ()
    """The tokens of the prompt, if their log-probabilities are wanted."""
    has_logprobs: bool = False
    """Whether the pieces come with the log-probabilities of their tokens."""
    ended: bool = False
    error: EdgeppError | None = None
    """The error that ended the answer early, to be raised after the events before it."""
    _num_calls: int = 0
    """Number of tool calls that are whole."""
    _arguments: list[str] = field(default_factory=list)
    """The arguments so far of the call that is open."""
    _logprobs: list[TokenLogprob] = field(default_factory=list)
    """Log-probabilities of text, to be told with it."""
    _content: ContentTokens = field(default_factory=ContentTokens)
    _told_prompt: bool = False
    _num_tokens: int = 0
    _reasoning_tokens: float = 0.0

    def take(self) -> list[GenerationEvent]:
        """The events of all pieces that have come since the last call."""
        pieces = self._pieces()
        finished = self.answer.finish_reason is not None
        parts = [part for piece in self._joined(pieces) for part in self._parts(piece)]
        if finished:
            parts += self._noted(self.parser.finish())
        self._count_reasoning(parts)
        events = self._with_logprobs([self._event(part) for part in joined(parts)])
        if events or finished:
            events = [*self._prompt_logprobs(), *events]
        if finished:
            self.ended = True
            tokens = tuple(self.answer.token_ids)
            events.append(ChoiceEnded(self.number, self._finish_reason, self.answer.stop_string, self.usage, tokens))
        return events

    @property
    def usage(self) -> Usage:
        """Tokens and times so far."""
        timing = self.answer.timing
        queue_s = max(0.0, timing.submitted_s - self.began_s) + timing.queued_s
        return Usage(
            prompt_tokens=self.answer.prompt_tokens,
            cached_tokens=timing.reused,
            completion_tokens=len(self.answer.token_ids),
            reasoning_tokens=min(round(self._reasoning_tokens), len(self.answer.token_ids)),
            queue_s=queue_s,
            prompt_s=max(0.0, timing.ttft_s - timing.queued_s),
            decode_s=timing.last_token_s - timing.first_token_s,
            recoveries=tuple(timing.recoveries),
        )

    def _joined(self, pieces: list[TextPiece]) -> list[TextPiece]:
        """The pieces as one for the parser, or each alone where it must be known which tokens become text."""
        if self.has_logprobs:
            return pieces
        return [TextPiece("".join(piece.text for piece in pieces))]

    def _parts(self, piece: TextPiece) -> list[AnswerPart]:
        """The parts that are certain after ``piece``; the log-probabilities of their texts are noted."""
        if isinstance(self.parser, PlainParser):
            self._logprobs += map(self._logprob, piece.tokens)
        elif self.has_logprobs:
            self._content.add(piece)
        return self._noted(self.parser.add(piece.text)) if piece.text else []

    def _noted(self, parts: list[AnswerPart]) -> list[AnswerPart]:
        for part in parts if self.has_logprobs else ():
            self._logprobs += map(self._logprob, self._content.take(part))
        return parts

    def _pieces(self) -> list[TextPiece]:
        pieces: list[TextPiece] = []
        try:
            while self.answer.finish_reason is None and (piece := self.answer.take()) is not None:
                pieces.append(piece)
        except EdgeppError as error:
            self.error = error
        return pieces

    @property
    def _finish_reason(self) -> FinishReason:
        reason = self.answer.finish_reason or "cancelled"
        return "tool_calls" if reason == "stop" and self._num_calls else reason

    def _event(self, part: AnswerPart) -> GenerationEvent:
        match part:
            case Text():
                return TextDelta(self.number, part.text)
            case Reasoning():
                return ReasoningDelta(self.number, part.text)
            case CallStarted():
                self._arguments = []
                return ToolCallStarted(self.number, self._num_calls, f"call_{secrets.token_hex(12)}", part.name)
            case CallArguments():
                self._arguments.append(part.text)
                return ToolCallDelta(self.number, self._num_calls, part.text)
            case CallEnded():
                self._num_calls += 1
                return ToolCallEnded(self.number, self._num_calls - 1, "".join(self._arguments))

    def _with_logprobs(self, events: list[GenerationEvent]) -> list[GenerationEvent]:
        """The events, the first text with the log-probabilities so far."""
        if not self._logprobs:
            return events
        logprobs, self._logprobs = tuple(self._logprobs), []
        for at, event in enumerate(events):
            if isinstance(event, TextDelta):
                return [*events[:at], TextDelta(self.number, event.text, logprobs), *events[at + 1 :]]
        return [*events, TextDelta(self.number, "", logprobs)]  # such as the token that ended the text

    def _prompt_logprobs(self) -> list[GenerationEvent]:
        """The log-probabilities of the prompt, once, if they are wanted; complete when the first token comes."""
        if not self.prompt or self._told_prompt:
            return []
        self._told_prompt = True
        scored = (SpelledToken(one.token, self.spell(one.token), one) for one in self.answer.prompt_sampled)
        first = self.spell(self.prompt[0])
        return [PromptLogprobs(self.number, _text(first), tuple(map(self._logprob, scored)), first)]

    def _logprob(self, token: SpelledToken) -> TokenLogprob:
        sampled = token.sampled
        top_raw = tuple(self.spell(rival) for rival, _ in sampled.top)
        top = tuple((_text(raw), logprob) for raw, (_, logprob) in zip(top_raw, sampled.top, strict=True))
        return TokenLogprob(_text(token.raw), sampled.logprob or 0.0, top, token.raw, top_raw, token.begin)

    def _count_reasoning(self, parts: Iterable[AnswerPart]) -> None:
        """Count the tokens of reasoning, in proportion to characters where text came in the same piece."""
        came, self._num_tokens = len(self.answer.token_ids) - self._num_tokens, len(self.answer.token_ids)
        sizes = [(isinstance(part, Reasoning), len(getattr(part, "text", ""))) for part in parts]
        reasoning = sum(size for is_reasoning, size in sizes if is_reasoning)
        if reasoning:
            self._reasoning_tokens += came * reasoning / sum(size for _, size in sizes)


class PlainParser:
    """The parser of a raw prompt's answer: all of it is text."""

    def add(self, text: str) -> list[AnswerPart]:
        """The text."""
        return [Text(text)]

    def finish(self) -> list[AnswerPart]:
        """No parts, since none are held back."""
        return []


def joined(parts: Iterable[AnswerPart]) -> list[AnswerPart]:
    """The parts, neighbours of one kind joined."""
    found: list[AnswerPart] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, Text) and isinstance(last, Text):
            found[-1] = Text(last.text + part.text)
        elif isinstance(part, Reasoning) and isinstance(last, Reasoning):
            found[-1] = Reasoning(last.text + part.text)
        elif isinstance(part, CallArguments) and isinstance(last, CallArguments):
            found[-1] = CallArguments(last.text + part.text)
        else:
            found.append(part)
    return found


def total(usages: list[Usage]) -> Usage:
    """The usage of all choices of one request together; the prompt counts once."""
    return Usage(
        prompt_tokens=max(one.prompt_tokens for one in usages),
        cached_tokens=min(one.cached_tokens for one in usages),
        completion_tokens=sum(one.completion_tokens for one in usages),
        reasoning_tokens=sum(one.reasoning_tokens for one in usages),
        queue_s=max(one.queue_s for one in usages),
        prompt_s=max(one.prompt_s for one in usages),
        decode_s=max(one.decode_s for one in usages),
        recoveries=tuple(recovery for one in usages for recovery in one.recoveries),
    )


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
