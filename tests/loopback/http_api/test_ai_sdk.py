"""The AI SDK of Vercel over OpenAI's API: answers, streams, tools and structured output."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgepp.http_api.openai_api.routes import routes
from edgepp.http_api.routing import Routing
from tests.builders.loopback_server import serving_app
from tests.builders.npm_clients import npm_library
from tests.builders.scripted_service import SERVED, ScriptedService, Step, answer, calling
from tests.waiting import PATIENCE_S

_SCRIPT = Path(__file__).parents[2] / "clients" / "ai_sdk.mjs"


def ask(what: str, *scripts: Sequence[Step]) -> tuple[dict[str, Any], ScriptedService]:
    """What the act ``what`` of the script tells of a server that answers the request number i with script i."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    packages = [str(npm_library(name) / name) for name in ("ai", "@ai-sdk/openai-compatible")]
    service = ScriptedService(scripts)
    with serving_app(Routing(routes(service))) as url:
        line = [node, str(_SCRIPT), *packages, f"{url}/v1", SERVED.name, what]
        done = subprocess.run(line, capture_output=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found, service


@pytest.mark.parametrize("what", ["whole", "stream"])
def test_answers_and_streams_are_the_same(what: str) -> None:
    told, _ = ask(what, answer("Hel", "lo"))
    assert told["text"] == "Hello"
    assert (told["usage"]["inputTokens"], told["usage"]["outputTokens"]) == (7, 2)


@pytest.mark.parametrize("what", ["tool", "toolStream"])
def test_a_tool_is_called(what: str) -> None:
    told, service = ask(what, calling("weather", {"city": "Bern"}), answer("It rains."))
    assert told == {"text": "It rains.", "calls": [["weather", {"city": "Bern"}]]}
    *_, asked, result = service.request.prompt.messages  # type: ignore[union-attr]
    assert result["tool_call_id"] == asked["tool_calls"][0]["id"]
    assert "rain in Bern" in result["content"]


def test_structured_output_is_held_to_its_schema() -> None:
    told, service = ask("structure", answer('{"answer"', ": 4}"))
    assert told == {"output": {"answer": 4}}
    constraint = service.request.options.constraint
    assert constraint is not None
    assert constraint.kind == "json_schema"
