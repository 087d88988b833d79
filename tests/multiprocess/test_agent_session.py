"""Ten turns of a coding agent over each API, on two stages: from turn 2 on nearly all of a prompt is in the cache.

The model is random but has the vocabulary of SmolLM2, so its answers are text that encodes otherwise than it was made.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

import edgepp
from edgepp.http_api.http_options import HttpOptions
from edgepp.http_api.server import HttpServer
from edgepp.model.fetch import fetch
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.agent_session.clients import Agent, ChatAgent, ClaudeCode, Codex, Spent
from tests.agent_session.recording import recording

LEAST_CACHED = 0.9
CONTEXT = 16_384


@pytest.fixture(scope="module")
def long_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model that takes long prompts."""
    shape = dataclasses.replace(TINY, vocabulary=49_152, context=CONTEXT)
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", shape, tokenizer=Path(fetch("smollm2-135m")))


@pytest.mark.parametrize("agent", [ClaudeCode, ChatAgent, Codex], ids=lambda agent: agent.__name__)
def test_a_turn_computes_only_what_is_new(long_context: Path, agent: type[Agent]) -> None:
    spent = played(long_context, CONTEXT, lambda url: play(agent(url, "tiny", recording()), titles=True))
    told = "\n".join(f"turn {turn}: {one}, {one.cached_share:.1%}" for turn, one in enumerate(spent, 1))
    print(told)  # noqa: T201
    assert all(one.cached_share >= LEAST_CACHED for one in spent[1:]), told
    assert spent[-1].prompt_tokens > spent[0].prompt_tokens


def play(agent: Agent, titles: bool) -> list[Spent]:
    """What each turn took; with ``titles``, a request for a title stands between any two turns."""
    spent = []
    for turn in agent.recording.turns:
        spent.append(agent.play(turn))
        if titles:
            agent.ask_for_title()
    return spent


def played(model: Path | str, context: int, client: Callable[[str], list[Spent]]) -> list[Spent]:
    """The result of ``client`` for the base URL of a cluster of two stages."""

    async def main() -> list[Spent]:
        cluster = edgepp.serve(str(model), stages=2, listen="127.0.0.1:0", threads=1, context=context)
        async with cluster, HttpServer(cluster, HttpOptions(http="127.0.0.1:0")) as http:
            await cluster.ready()
            return await asyncio.to_thread(client, http.url)

    return asyncio.run(main())
