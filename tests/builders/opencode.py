"""One question to the coding agent opencode, from npm, in a home and a folder of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.builders.npm_clients import client_environment, npm_client

_PATIENCE_S = 500.0


@dataclass(frozen=True)
class Turn:
    """Tool calls and text of one turn of opencode."""

    tools: list[tuple[str, str]]
    """Name and output of each tool that was called."""
    text: str


@dataclass(frozen=True)
class Served:
    """A model, as a user tells opencode of it."""

    url: str
    """Base URL of the server, without ``/v1``."""
    name: str
    context: int
    """Tokens of prompt and answer together."""
    output: int = 4096
    """Tokens of an answer."""


def opencode_turn(served: Served, home: Path, question: str, agent: Mapping[str, Any] | None = None) -> Turn:
    """The turn of opencode for ``question`` in the folder ``home/work``.

    Args:
        served: The model that answers.
        home: A folder for settings, state and ``work``.
        question: What a user types.
        agent: Settings of the agent ``build``, such as ``prompt``.
    """
    work = home / "work"
    work.mkdir(parents=True, exist_ok=True)
    settings = {
        "OPENCODE_CONFIG_CONTENT": json.dumps(_config(served, agent or {})),
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
    }
    line = [str(npm_client("opencode-ai", "opencode")), "run", "--pure", "--format", "json", question]
    environment = client_environment(home, settings)
    done = subprocess.run(
        line, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=_PATIENCE_S
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return _turn([json.loads(event) for event in done.stdout.splitlines() if event.startswith("{")])


def _config(served: Served, agent: Mapping[str, Any]) -> dict[str, Any]:
    limit = {"context": served.context, "output": served.output}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "edgepp",
        "options": {"baseURL": f"{served.url}/v1", "apiKey": "none"},
        "models": {served.name: {"name": served.name, "tool_call": True, "limit": limit}},
    }
    named = f"edgepp/{served.name}"
    return {
        "provider": {"edgepp": provider},
        "model": named,
        "small_model": named,
        "agent": {"build": dict(agent)},
        "autoupdate": False,
        "share": "disabled",
    }


def _turn(events: list[dict[str, Any]]) -> Turn:
    failed = [event for event in events if event["type"] == "error"]
    assert not failed, failed
    parts = [event["part"] for event in events]
    tools = [(part["tool"], part["state"].get("output", "")) for part in parts if part["type"] == "tool"]
    return Turn(tools, "".join(part["text"] for part in parts if part["type"] == "text"))
