"""The settings that each client is started with."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from edgepp.cli.launch import _NAMES
from edgepp.ui.launch.clients import CLIENTS, Folders
from edgepp.ui.launch.run import _context_warning
from edgepp.ui.launch.settings import Launch, Target

URL, MODEL, CONTEXT, KEY = "http://127.0.0.1:11434", "smollm2-135m", 8192, "sk-secret"


def launch(client: str, key: str = "", context: int = CONTEXT, **environment: str) -> Launch:
    folders = Folders(Path("/own"), Path("/home/me"), environment)
    return CLIENTS[client](Target(URL, MODEL, context, key), folders)


def everything(one: Launch) -> str:
    """All that is written to files or stands in a command line."""
    config = one.config.content if one.config else ""
    return json.dumps([one.command, list(one.own_files.values()), config if isinstance(config, str) else dict(config)])


def test_the_command_knows_every_client() -> None:
    assert tuple(CLIENTS) == _NAMES


@pytest.mark.parametrize("client", CLIENTS)
def test_a_key_stands_in_no_file_and_no_command_line(client: str) -> None:
    one = launch(client, KEY)
    assert KEY not in everything(one)
    assert KEY in one.environment.values()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_knows_url_and_model(client: str) -> None:
    one = launch(client)
    told = everything(one) + json.dumps(dict(one.environment))
    assert URL in told
    assert MODEL in told or client == "open-webui", "Open WebUI lists the models itself"


def test_codex_reads_its_command_line_and_its_profile_alike() -> None:
    one = launch("codex", KEY)
    assert one.config is not None
    assert one.config.path == Path("/home/me/.codex/edgepp.config.toml")
    profile = tomllib.loads(str(one.config.content))
    assert profile["model_providers"]["edgepp"] == {
        "name": "edgepp",
        "base_url": f"{URL}/v1",
        "wire_api": "responses",
        "env_key": "EDGEPP_API_KEY",
    }
    assert profile["features"]["goals"] is False
    given = [word for word in one.command[1:] if word != "-c"]
    assert tomllib.loads("\n".join(given)) == profile
    assert list(one.own_files) == [Path(profile["model_catalog_json"])]


def test_codex_keeps_its_tools_where_the_context_is_large() -> None:
    assert not [word for word in launch("codex", context=131_072).command if word.startswith("features")]


def test_codex_does_not_demand_a_key_that_nobody_has() -> None:
    assert not [word for word in launch("codex").command if "env_key" in word]


@pytest.mark.parametrize(
    ("client", "variable", "path"),
    [
        ("codex", "CODEX_HOME", "/c/edgepp.config.toml"),
        ("claude", "CLAUDE_CONFIG_DIR", "/c/settings.json"),
        ("opencode", "XDG_CONFIG_HOME", "/c/opencode/opencode.json"),
        ("zed", "XDG_CONFIG_HOME", "/c/zed/settings.json"),
        ("llm", "LLM_USER_PATH", "/c/extra-openai-models.yaml"),
    ],
)
def test_files_are_where_the_client_looks_for_them(client: str, variable: str, path: str) -> None:
    one = launch(client, **{variable: "/c"})
    assert one.config is not None
    assert one.config.path == Path(path)


def test_claude_has_the_settings_that_keep_its_prompts_in_the_prefix_cache() -> None:
    settings = launch("claude").environment
    assert settings["ANTHROPIC_BASE_URL"] == URL
    assert settings["CLAUDE_CODE_ATTRIBUTION_HEADER"] == "0"
    assert "CLAUDE_CODE_AUTO_COMPACT_WINDOW" not in settings, "Claude Code takes none below 100,000 tokens"
    assert launch("claude", context=131_072).environment["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "131072"
    assert {settings[name] for name in settings if name.endswith("_MODEL")} == {MODEL}


def test_claude_asks_for_a_key_when_it_needs_one() -> None:
    one = launch("claude", KEY)
    assert one.config is not None
    assert not isinstance(one.config.content, str)
    assert one.config.content["apiKeyHelper"] == "printenv EDGEPP_API_KEY"
    assert "ANTHROPIC_AUTH_TOKEN" not in one.config.content["env"]


@pytest.mark.parametrize(
    ("client", "context", "words"),
    [
        ("claude", 4096, "12,200 tokens before the first question, so a context of 4,096 tokens is too small"),
        ("claude", 16_384, "leaves 4,184 tokens"),
        ("opencode", 4096, "too small for any question"),
        ("codex", 4096, "leaves 2,096 tokens"),
        ("open-webui", 4096, "too small for any question"),
    ],
)
def test_a_context_that_is_too_small_for_a_client_is_warned_of(client: str, context: int, words: str) -> None:
    warning = _context_warning(client, Target(URL, MODEL, context), launch(client))
    assert words in warning
    assert "edgepp serve --context 32768" in warning


@pytest.mark.parametrize("client", CLIENTS)
def test_a_large_context_is_not_warned_of(client: str) -> None:
    assert _context_warning(client, Target(URL, MODEL, 32_768), launch(client)) == ""


def test_open_webui_uses_ollamas_api_unless_a_key_is_needed() -> None:
    assert launch("open-webui").environment["OLLAMA_BASE_URL"] == URL
    keyed = launch("open-webui", KEY).environment
    assert (keyed["OPENAI_API_BASE_URL"], keyed["ENABLE_OLLAMA_API"]) == (f"{URL}/v1", "False")
