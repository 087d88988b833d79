"""Claude Code against the routes of Anthropic's API, over a scripted model: a turn with a tool, without internet."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgepp.http_api.anthropic_api.messages import routes
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
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
from edgepp.model.text.conversation import Conversation, Message
from tests.builders.claude_code import ask_claude_code
from tests.builders.loopback_server import serving
from tests.builders.scripted_service import ScriptedService, Step


@dataclass
class Agent(ScriptedService):
    """Calls one tool, and repeats its result as the answer."""

    tool: str = ""
    arguments: str = ""

    def served(self, name: str | None) -> ServedModel:
        """The model, by any name."""
        return self.model

    def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationEvent]:
        """A call of the tool as long as the conversation has no result of one."""
        results = [message["content"] for message in messages_of(request) if message["role"] == "tool"]
        self.scripts = [*self.scripts, self._answer(results[-1]) if results else self._call()]
        return super().generate(request)

    def _call(self) -> list[Step]:
        half = len(self.arguments) // 2
        return [
            Started(1000),
            TextDelta(0, "I will look."),
            ToolCallStarted(0, 0, "call_1", self.tool),
            ToolCallDelta(0, 0, self.arguments[:half]),
            ToolCallDelta(0, 0, self.arguments[half:]),
            ToolCallEnded(0, 0, self.arguments),
            ChoiceEnded(0, "tool_calls"),
            Ended(Usage(1000, 0, 30)),
        ]

    def _answer(self, result: str) -> list[Step]:
        return [Started(1100), TextDelta(0, f"It says: {result}"), ChoiceEnded(0, "stop"), Ended(Usage(1100, 1000, 9))]


def messages_of(request: GenerationRequest) -> Sequence[Message]:
    assert isinstance(request.prompt, Conversation)
    return request.prompt.messages


def ask(service: ScriptedService, folder: Path, prompt: str) -> list[dict[str, Any]]:
    """What Claude Code prints in a folder of its own."""
    project = folder / "project"
    project.mkdir()
    (project / "notes.txt").write_text("the word is heron\n")
    with serving(routes(service)) as url:
        return ask_claude_code(url, service.model.name, folder, prompt)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("Bash", {"command": "cat notes.txt", "description": "Show the notes"}),
        ("Read", {"file_path": "{project}/notes.txt"}),
    ],
    ids=["Bash", "Read"],
)
def test_claude_code_runs_a_tool_and_answers_with_its_result(
    tmp_path: Path, tool: str, arguments: dict[str, str]
) -> None:
    called = json.dumps(arguments).replace("{project}", str(tmp_path / "project"))
    service = Agent([], tool=tool, arguments=called)
    printed = ask(service, tmp_path, "Which word do the notes have?")
    result = printed[-1]
    assert (result["type"], result["is_error"], result["num_turns"]) == ("result", False, 2)
    assert "the word is heron" in result["result"]
    first, second = (played.request for played in service.played)
    assert {"Bash", "Read", "Edit"} <= {one.name for one in first.tool_use.tools}
    assert list(messages_of(second))[: len(messages_of(first))] == list(messages_of(first))
    assert not any("x-anthropic-billing-header" in str(message) for message in messages_of(first))
    assert [message["role"] for message in messages_of(second)[-2:]] == ["assistant", "tool"]
