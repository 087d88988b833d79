"""Codex CLI from npm against the Responses API, set up as by `edgepp launch codex`: whole turns, no internet."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    Idle,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.openai_api.responses import routes
from edgepp.http_api.routing import Routing
from edgepp.ui.launch.codex import codex
from edgepp.ui.launch.settings import Target
from tests.builders.loopback_server import serving_app
from tests.builders.npm_clients import client_environment, npm_client
from tests.builders.scripted_service import SERVED, ScriptedService, Step, answer

USAGE = Usage(prompt_tokens=50, cached_tokens=40, completion_tokens=9)
PATCH = "*** Begin Patch\n*** Add File: made.txt\n+made by a patch\n*** End Patch"


@dataclass
class Ran:
    """What Codex said, did and asked."""

    events: list[dict[str, Any]]
    service: ScriptedService
    folder: Path
    error: str = ""
    authorization: str = ""
    items: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.items = [event["item"] for event in self.events if event["type"] == "item.completed"]

    def tool_results(self) -> list[str]:
        """The results of tools in the newest request."""
        prompt: Any = self.service.request.prompt
        return [message["content"] for message in prompt.messages if message["role"] == "tool"]


def calls(name: str, **arguments: Any) -> list[Step]:
    """An answer that thinks, says a word and calls one tool."""
    text = json.dumps(arguments)
    return [
        Started(50),
        Idle(),
        ReasoningDelta(0, "let me see"),
        TextDelta(0, "I do it."),
        ToolCallStarted(0, 0, "call_a", name),
        *(ToolCallDelta(0, 0, text[i : i + 9]) for i in range(0, len(text), 9)),
        ToolCallEnded(0, 0, text),
        ChoiceEnded(0, "tool_calls", usage=USAGE),
        Ended(USAGE),
    ]


def run_codex(tmp_path: Path, scripts: Sequence[Sequence[Step]], context: int = 8192, key: str = "") -> Ran:
    program = npm_client("@openai/codex", "codex")
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    service = ScriptedService(scripts)
    app, keys = Routing(routes(service)), [""]

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        keys.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        await app(scope, receive, send)

    with serving_app(watched) as url:
        launch = codex(Target(url, SERVED.name, context, key), home, home)
        for path, text in launch.own_files.items():
            path.write_text(text)
        options = ("exec", "--json", "--skip-git-repo-check", "--sandbox", "danger-full-access", "--cd", str(work))
        done = subprocess.run(
            [str(program), *launch.command[1:], *options, "make a file"],
            env=client_environment(home, {"CODEX_HOME": str(home), **launch.environment}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return Ran(events, service, work, done.stderr, keys[-1])


@pytest.mark.parametrize("context", [8192, 131_072])
def test_a_turn_with_a_command(tmp_path: Path, context: int) -> None:
    command = "echo made > made.txt && cat made.txt"
    ran = run_codex(tmp_path, [calls("exec_command", cmd=command), answer("It is", " made.")], context)
    assert (ran.folder / "made.txt").read_text() == "made\n", ran.error
    assert "made" in ran.tool_results()[0]
    assert [item["text"] for item in ran.items if item["type"] == "agent_message"] == ["I do it.", "It is made."]
    assert not [item for item in ran.items if item["type"] == "error"], "such as: no metadata of the model"
    end = ran.events[-1]
    assert (end["type"], end["usage"]["cached_input_tokens"]) == ("turn.completed", 40)
    assert len(ran.service.played) == 2, "no other requests are sent"


def test_a_turn_with_a_patch_as_custom_tool(tmp_path: Path) -> None:
    ran = run_codex(tmp_path, [calls("apply_patch", input=PATCH), answer("Done.")])
    assert (ran.folder / "made.txt").read_text() == "made by a patch\n", ran.error
    assert [tool.name for tool in ran.service.request.tool_use.tools if tool.name == "apply_patch"]


def test_a_call_of_a_tool_in_a_namespace(tmp_path: Path) -> None:
    ran = run_codex(tmp_path, [calls("multi_agent_v1.close_agent", target="nobody"), answer("Done.")], 131_072)
    names = [tool.name for tool in ran.service.request.tool_use.tools]
    assert "multi_agent_v1.close_agent" in names
    assert ran.events[-1]["type"] == "turn.completed", ran.error
    assert "unsupported call" not in ran.tool_results()[0]


def test_the_key_is_sent(tmp_path: Path) -> None:
    ran = run_codex(tmp_path, [answer("Done.")], key="sk-a")
    assert ran.authorization == "Bearer sk-a", ran.error


def test_a_conversation_is_compacted_before_the_context_is_full(tmp_path: Path) -> None:
    nearly_full = Usage(prompt_tokens=6_500, completion_tokens=9)
    first = [
        *calls("exec_command", cmd="true")[:-2],
        ChoiceEnded(0, "tool_calls", usage=nearly_full),
        Ended(nearly_full),
    ]
    ran = run_codex(tmp_path, [first, answer("THE SUMMARY."), answer("Done.")])
    assert ran.events[-1]["type"] == "turn.completed", ran.error
    asked: Any = [one.request.prompt for one in ran.service.played]
    assert len(asked) == 3
    assert "THE SUMMARY." in str(asked[2].messages)
    assert not ran.tool_results()


def test_a_prompt_that_is_too_long_is_told_as_such(tmp_path: Path) -> None:
    full = RequestError("context_length_exceeded", "the prompt is too long", prompt_tokens=9000, context=8192)
    ran = run_codex(tmp_path, [[full]])
    assert ran.events[-1]["type"] == "turn.failed"
    assert "ran out of room" in ran.events[-1]["error"]["message"], ran.events
    assert len(ran.service.played) == 1, "it is not tried again"


def test_codex_waits_as_long_as_a_busy_cluster_tells_it(tmp_path: Path) -> None:
    busy = RequestError("rate_limited", "the cluster is busy", retry_after_s=0.2)
    ran = run_codex(tmp_path, [[busy], answer("Done.")])
    assert ran.events[-1]["type"] == "turn.completed", ran.error
    assert len(ran.service.played) == 2
