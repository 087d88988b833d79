"""Codex CLI from npm on a two-stage cluster with real weights.

A model of 135M parameters chooses no tools well and does not end each answer, so a proxy before the cluster makes each
request greedy, and demands a call of the shell in the first one, with the one command that the test knows, and a short
answer in the second one. All else is as a user has it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from edgepp.ui.launch.codex import codex
from edgepp.ui.launch.settings import Target
from tests.builders.codex_reader import codex_reads
from tests.builders.loopback_server import serving_app
from tests.builders.npm_clients import client_environment, npm_client
from tests.multiprocess.http_cluster import MODEL, HttpCluster

_SHELL = {"type": "function", "name": "exec_command"}
_SCHEMA = {
    "type": "object",
    "properties": {"cmd": {"type": "string", "enum": ["pwd"]}},
    "required": ["cmd"],
    "additionalProperties": False,
}

_ANSWER = {
    "type": "json_schema",
    "name": "answer",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"directory": {"type": "string", "enum": ["shown"]}},
        "required": ["directory"],
        "additionalProperties": False,
    },
}


class Proxy:
    """Passes requests on to the cluster, changed; keeps what came back."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.asked: list[dict[str, Any]] = []
        self.streams: list[bytes] = []

    async def __call__(self, request: Request) -> StreamingResponse:
        """Pass one request on."""
        body = await request.json() | {"temperature": 0}
        body["tools"] = [
            {**tool, "strict": True, "parameters": _SCHEMA} if tool["name"] == _SHELL["name"] else tool
            for tool in body["tools"]
        ]
        self.asked.append(body)
        if len(self.asked) == 1:
            changes: dict[str, Any] = {"tool_choice": _SHELL}
        else:  # an answer of its own might go on to the end of the context, which Codex takes for a failure
            changes = {"tool_choice": "none", "text": {"format": _ANSWER}}
        return StreamingResponse(self._passed(body | changes), media_type="text/event-stream")

    async def _passed(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        self.streams.append(b"")
        async with (
            httpx.AsyncClient(timeout=300) as client,
            client.stream("POST", f"{self._url}/v1/responses", json=body) as response,
        ):
            async for piece in response.aiter_bytes():
                self.streams[-1] += piece
                yield piece


@contextmanager
def proxied(cluster: HttpCluster) -> Iterator[tuple[str, Proxy]]:
    proxy = Proxy(cluster.url)
    with serving_app(Starlette(routes=[Route("/v1/responses", proxy.__call__, methods=["POST"])])) as url:
        yield url, proxy


def test_codex_runs_a_turn_with_a_tool_on_two_stages(http_cluster: HttpCluster, tmp_path: Path) -> None:
    program = npm_client("@openai/codex", "codex")
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    context = http_cluster.get("/v1/models").json()["data"][0]["context_length"]
    with proxied(http_cluster) as (url, proxy):
        launch = codex(Target(url, MODEL, context), home, home)
        for path, text in launch.own_files.items():
            path.write_text(text)
        options = ("exec", "--json", "--skip-git-repo-check", "--sandbox", "danger-full-access", "--cd", str(work))
        done = subprocess.run(
            [str(program), *launch.command[1:], *options, "Say hello."],
            env=client_environment(home, {"CODEX_HOME": str(home), **launch.environment}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    turns = [codex_reads(stream) for stream in proxy.streams]
    assert [turn.completed for turn in turns] == [True, True], (events, done.stderr)
    assert json.loads(turns[0].items[-1]["arguments"]) == {"cmd": "pwd"}
    commands = [one["item"] for one in events if one["type"] == "item.completed"]
    ran = next(item for item in commands if item["type"] == "command_execution")
    assert (ran["aggregated_output"].strip(), ran["exit_code"]) == (str(work), 0)
    assert events[-1]["type"] == "turn.completed", events
    again = http_cluster.post("/v1/responses", **proxy.asked[1] | {"stream": False, "max_output_tokens": 16})
    usage = again.json()["usage"]
    cached = usage["input_tokens_details"]["cached_tokens"]
    assert cached >= 0.9 * turns[0].usage["input_tokens"], "the second request, as Codex made it, prefills what is new"
