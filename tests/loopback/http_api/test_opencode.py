"""opencode, as it is, against the routes over a scripted model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    GenerationEvent,
    GenerationRequest,
    Started,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.openai_api.routes import routes
from edgepp.http_api.routing import Routing
from edgepp.model.text.conversation import Conversation
from tests.builders.loopback_server import serving_app
from tests.builders.opencode import Served, opencode_turn
from tests.builders.scripted_service import SERVED, ScriptedService, Step, answer

USAGE = Usage(prompt_tokens=7, completion_tokens=3)


class Reader(ScriptedService):
    """Reads one file with the tool ``read``, and then answers; the title of a session is a request without tools."""

    def __init__(self, path: Path) -> None:
        super().__init__([], model=replace(SERVED, context=32768))
        self.path = path

    def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationEvent]:
        assert isinstance(request.prompt, Conversation)
        if not request.tool_use.tools:
            self.scripts = [answer("A title")]
        elif request.prompt.messages[-1]["role"] == "tool":
            self.scripts = [answer("It says ", "swordfish.")]
        else:
            self.scripts = [_reading(self.path)]
        return super().generate(request)


def _reading(path: Path) -> list[Step]:
    arguments = json.dumps({"filePath": str(path)})
    return [
        Started(7),
        ToolCallStarted(0, 0, "call_1", "read"),
        ToolCallDelta(0, 0, arguments[:9]),
        ToolCallDelta(0, 0, arguments[9:]),
        ToolCallEnded(0, 0, arguments),
        ChoiceEnded(0, "tool_calls", usage=USAGE),
        Ended(USAGE),
    ]


def test_a_turn_with_a_tool(tmp_path: Path) -> None:
    path = tmp_path / "work" / "password.txt"
    path.parent.mkdir()
    path.write_text("swordfish\n")
    service = Reader(path)
    with serving_app(Routing(routes(service))) as url:
        turn = opencode_turn(Served(url, SERVED.name, 32768), tmp_path, "What does password.txt say?")
    ((tool, output),) = turn.tools
    assert tool == "read"
    assert "swordfish" in output
    assert turn.text == "It says swordfish."
    results: list[Any] = list(service.request.prompt.messages)  # type: ignore[union-attr]
    assert results[-1]["tool_call_id"] == results[-2]["tool_calls"][0]["id"]
