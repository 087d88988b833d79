"""A ``ModelService`` that plays given events, for tests of the APIs' files; its tokenizer makes one token of a byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from edgepp.coordinator.ended_answer import OnEnded
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.model_service import ServedModel
from edgepp.model.text.conversation import Conversation, Prompt
from edgepp.python_api.served_cluster import Invitation
from edgepp.tool_calls.tool_use import ToolUse

Step: TypeAlias = GenerationEvent | Exception | asyncio.Event
"""An event is played, an exception raised, and an ``asyncio.Event`` waited for."""

SERVED = ServedModel(
    name="smollm2-135m",
    names=("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m:latest"),
    family="llama",
    context=2048,
    trained_context=8192,
    num_parameters=134_515_008,
    hidden_size=576,
    size_bytes=269_060_552,
    quantization="F16",
    digest="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    created_s=1_764_000_000,
    template="{% for message in messages %}{{ message.content }}{% endfor %}{{ tools }}",
    supports_tools=True,
    thinks=False,
    state="loaded",
    sampling={"temperature": 0.2, "top_p": 0.9},
)


@dataclass
class Played:
    """One request to a ``ScriptedService`` and what became of its events."""

    request: GenerationRequest
    sent: int = 0
    """Events that the reader has taken."""
    closed: bool = False
    """Whether the iterator has ended: played out, failed, or closed by its reader."""
    cancelled: bool = False
    """Whether the reader closed the iterator before its end."""


@dataclass
class ScriptedService:
    """A service that answers request number i with script i, and further requests with the last script."""

    scripts: Sequence[Sequence[Step]]
    model: ServedModel = SERVED
    played: list[Played] = field(default_factory=list)
    """All requests so far."""
    observers: list[OnEnded] = field(default_factory=list)
    drained: list[tuple[str, bool]] = field(default_factory=list)
    """Nodes that were to be drained, and whether that was undone."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The result of ``status``."""

    async def prepare(self) -> None:
        """Do nothing: the model is known."""

    @property
    def request(self) -> GenerationRequest:
        """The newest request."""
        return self.played[-1].request

    def served(self, name: str | None) -> ServedModel:
        """The model, by each of its names."""
        if name and name not in self.model.names:
            raise RequestError("not_found", f"no model '{name}' is served here; there is {self.model.name}")
        return self.model

    def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationEvent]:
        """The next script."""
        script = self.scripts[min(len(self.played), len(self.scripts) - 1)]
        played = Played(request)
        self.played.append(played)
        return self._play(script, played)

    async def _play(self, script: Sequence[Step], played: Played) -> AsyncIterator[GenerationEvent]:
        try:
            for step in script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    played.sent += 1
                    yield step
        except (GeneratorExit, asyncio.CancelledError):
            played.cancelled = True
            raise
        finally:
            played.closed = True

    async def encode(self, prompt: Prompt, tool_use: ToolUse | None = None, owner: str = "") -> list[int]:
        """The UTF-8 bytes of a text, or of a conversation's lines ``role: content``."""
        if isinstance(prompt, tuple):
            return list(prompt)
        text = prompt if isinstance(prompt, str) else _rendered(prompt)
        tools = "".join(f"tool: {tool.name}\n" for tool in tool_use.tools) if tool_use else ""
        return list((tools + text).encode())

    async def decode(self, token_ids: Sequence[int], owner: str = "") -> str:
        """The text of UTF-8 bytes."""
        for token_id in token_ids:
            if not 0 <= token_id < 256:
                raise RequestError("invalid_request", f"the model has no token {token_id}")
        return bytes(token_ids).decode(errors="replace")

    async def load(self, model: str) -> None:
        """Serve another model from now on, unless it is called ``none``."""
        if model == "none":
            raise RequestError("not_found", "there is no model called 'none'", parameter="model")
        self.model = replace(self.model, name=model, names=(model,))

    async def invite(self) -> Invitation:
        """The same invitation each time."""
        return Invitation("7-tango-lemon", ("192.168.1.4:5700",), 600.0)

    async def drain(self, node: str, *, undo: bool) -> Mapping[str, Any]:
        """Note the drain, unless the node is called ``none``."""
        if node == "none":
            raise RequestError("invalid_request", "no present node is called 'none'", parameter="node")
        self.drained.append((node, undo))
        return {"node": "ab12", "name": node, "draining": not undo, "layers": [[0, 15]]}

    def observe(self, on_ended: OnEnded) -> None:
        """Keep ``on_ended``, for the test to call."""
        self.observers.append(on_ended)

    def status(self) -> Mapping[str, Any]:
        """The state of the cluster that the test has set."""
        return self.state


class AnyName(ScriptedService):
    """A service that serves its model by every name, so that random requests get further."""

    def served(self, name: str | None) -> ServedModel:
        """The model."""
        return self.model


def _rendered(conversation: Conversation) -> str:
    return "".join(f"{message['role']}: {message.get('content') or ''}\n" for message in conversation.messages)


def calling(name: str, arguments: Mapping[str, Any]) -> list[Step]:
    """The events of a whole answer of one choice that is one call of the tool ``name``."""
    usage, text = Usage(prompt_tokens=7, completion_tokens=3), json.dumps(arguments)
    call: list[Step] = [ToolCallStarted(0, 0, "call_1", name), ToolCallDelta(0, 0, text), ToolCallEnded(0, 0, text)]
    return [Started(7), *call, ChoiceEnded(0, "tool_calls", usage=usage), Ended(usage)]


def answer(*texts: str, finish_reason: FinishReason = "stop", usage: Usage | None = None) -> list[Step]:
    """The events of a whole answer of one choice, a delta for each text."""
    usage = usage or Usage(prompt_tokens=7, completion_tokens=len(texts), prompt_s=0.5, decode_s=0.25)
    deltas = [TextDelta(0, text) for text in texts]
    ended = ChoiceEnded(0, finish_reason, usage=usage, token_ids=tuple("".join(texts).encode()))
    return [Started(usage.prompt_tokens), *deltas, ended, Ended(usage)]
