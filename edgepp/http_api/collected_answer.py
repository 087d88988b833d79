"""A whole answer, collected from its events, for responses that are not streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    FinishReason,
    GenerationEvent,
    PromptLogprobs,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.iterator_closing import closing


@dataclass
class CollectedCall:
    """One tool call; ``arguments`` are the JSON text of one object."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class CollectedChoice:
    """One choice, as far as its events have come."""

    text: str = ""
    reasoning: str = ""
    calls: list[CollectedCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt: PromptLogprobs | None = None
    """Log-probabilities of the prompt, if they were asked for."""
    finish_reason: FinishReason = "stop"
    stop_string: str | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass
class CollectedAnswer:
    """All choices in order, and the tokens and times of all together."""

    choices: list[CollectedChoice]
    usage: Usage = field(default_factory=Usage)


async def collected(events: AsyncIterator[GenerationEvent], num_choices: int = 1) -> CollectedAnswer:
    """The answer that ``events`` make.

    Raises:
        RequestError: the answer cannot begin, or ended early.
    """
    answer = CollectedAnswer([CollectedChoice() for _ in range(num_choices)])
    async with closing(events):
        async for event in events:
            if isinstance(event, Ended):
                answer.usage = event.usage
            elif isinstance(event, PromptLogprobs):
                answer.choices[event.choice].prompt = event
            elif isinstance(event, TextDelta | ReasoningDelta | ToolCallStarted | ToolCallDelta | ChoiceEnded):
                _add(answer.choices[event.choice], event)
    return answer


def _add(
    choice: CollectedChoice, event: TextDelta | ReasoningDelta | ToolCallStarted | ToolCallDelta | ChoiceEnded
) -> None:
    match event:
        case TextDelta():
            choice.text += event.text
            choice.logprobs += event.logprobs
        case ReasoningDelta():
            choice.reasoning += event.text
        case ToolCallStarted():
            choice.calls.append(CollectedCall(event.id, event.name))
        case ToolCallDelta():
            choice.calls[event.call].arguments += event.arguments
        case ChoiceEnded():
            choice.finish_reason, choice.stop_string, choice.usage = event.finish_reason, event.stop_string, event.usage
