"""Ten turns of a coding agent over each API, on two stages: from turn 2 on nearly all of a prompt is in the cache.

The random model has the vocabulary of SmolLM2, so its answers are text that encodes otherwise than it was made.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from edgepp.model.fetch import fetch
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.agent_session.clients import AGENTS, Agent, ClaudeCode
from tests.agent_session.recording import recording
from tests.builders.chat_templates import TEMPLATES
from tests.builders.claude_code import ask_claude_code
from tests.multiprocess.http_cluster import HttpCluster, serving_http

LEAST_CACHED = 0.9
MOST_MERGED = 8
"""Tokens at the end of a prompt that the next prompt may have otherwise: one may merge with the answer's beginning, and
an empty reasoning is left out of the history."""
CONTEXT = 16_384


@contextmanager
def serving_long_context(folder: Path, template: str | None = None) -> Iterator[HttpCluster]:
    """A cluster with a tiny random model that takes long prompts."""
    shape = dataclasses.replace(TINY, vocabulary=49_152, context=CONTEXT)
    model = make_checkpoint(folder / "tiny", shape, tokenizer=Path(fetch("smollm2-135m")))
    if template is not None:
        settings = model / "tokenizer_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": template}))
    with serving_http(folder, "--stages", "2", "--context", str(CONTEXT), model=str(model)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def long_context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpCluster]:
    with serving_long_context(tmp_path_factory.mktemp("agent-session")) as cluster:
        yield cluster


def agent_of(kind: type[Agent], cluster: HttpCluster, model: str, name: str) -> Agent:
    """An agent whose prompts share nothing with those of agents of other names."""
    session = recording()
    own = dataclasses.replace(session, system=f"Your name is {name}.\n{session.system}")
    return kind(cluster.url, model, own, lambda: int(cluster.status()["engine"]["reused_tokens"]))


def assert_computes_only_what_is_new(agent: Agent) -> None:
    """Play the session, with a request for a title after each turn, which may not displace the conversation."""
    spent = []
    for turn in agent.recording.turns:
        spent.append(agent.play(turn))
        agent.ask_for_title()
    told = "\n".join(f"turn {turn}: {one}, {one.cached_share:.1%}" for turn, one in enumerate(spent, 1))
    assert spent[0].cached_tokens < 0.1 * spent[0].prompt_tokens, told
    for before, one in pairwise(spent):
        assert one.cached_share >= LEAST_CACHED, told
        assert one.cached_tokens >= before.prompt_tokens - MOST_MERGED, told


@pytest.mark.parametrize("kind", AGENTS, ids=lambda kind: kind.__name__)
def test_a_turn_computes_only_what_is_new(long_context: HttpCluster, kind: type[Agent]) -> None:
    assert_computes_only_what_is_new(agent_of(kind, long_context, "tiny", kind.__name__))


@pytest.mark.parametrize("template", ["llama", "qwen"])
def test_templates_with_tools_of_their_own_compute_only_what_is_new(tmp_path: Path, template: str) -> None:
    with serving_long_context(tmp_path, TEMPLATES[template]) as cluster:
        assert_computes_only_what_is_new(agent_of(ClaudeCode, cluster, "tiny", "Ann"))


@pytest.mark.timeout(700)
def test_claude_code_finds_its_long_prompt_in_the_cache(long_context: HttpCluster, tmp_path: Path) -> None:
    def used() -> tuple[int, int]:
        settings = {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "32"}  # the random model does not come to an end by itself
        result = ask_claude_code(long_context.url, "tiny", tmp_path, "Say hello.", **settings)[-1]
        return result["usage"]["input_tokens"], result["usage"]["cache_read_input_tokens"]

    first_computed, _ = used()
    computed, cached = used()
    assert first_computed > 10_000
    assert cached >= LEAST_CACHED * (computed + cached)


@pytest.mark.timeout(900)
def test_real_weights_compute_only_what_is_new(tmp_path: Path) -> None:
    with serving_http(tmp_path, "--stages", "2", "--context", "8192") as cluster:
        assert_computes_only_what_is_new(agent_of(ClaudeCode, cluster, "smollm2-135m", "Eve"))
