"""Settings and command of each client that uses the cluster; `docs/clients.md` says what works in each client."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgepp.ui.launch.codex import codex
from edgepp.ui.launch.settings import ANY_KEY, KEY_VARIABLE, ConfigFile, Launch, Target

_ANSWER_TOKENS = 4096
"""Longest answer in tokens, for clients that have a setting for this limit."""
_LEAST_COMPACT_WINDOW = 100_000
"""Smallest window in tokens at which Claude Code compacts; at a smaller setting Claude Code warns and uses this one."""


@dataclass(frozen=True)
class Folders:
    """Folders in which files of clients are."""

    own: Path
    """The folder of edgepp's own files for clients."""
    home: Path
    """The user's home."""
    environment: Mapping[str, str]
    """Environment variables; some name the folders of clients, such as ``CODEX_HOME``."""

    def of(self, variable: str, *otherwise: str) -> Path:
        """The folder that ``variable`` names, or one in the user's home."""
        named = self.environment.get(variable)
        return Path(named) if named else self.home.joinpath(*otherwise)


def _claude(target: Target, folders: Folders) -> Launch:
    settings = {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_MODEL": target.model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": target.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": target.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": target.model,
        "CLAUDE_CODE_SUBAGENT_MODEL": target.model,
        # Both texts change with each request and come before the conversation, whose KV cache could not be reused then.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_TOTAL_TOKENS_REMINDER": "off",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    if target.context >= _LEAST_COMPACT_WINDOW:
        settings["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] = str(target.context)
    token = {"ANTHROPIC_AUTH_TOKEN": target.key or ANY_KEY}
    # The helper prints the key when Claude Code needs it, so that no file has the key.
    written = {"apiKeyHelper": f"printenv {KEY_VARIABLE}"} if target.key else {}
    return Launch(
        ("claude",),
        settings | token,
        config=ConfigFile(
            folders.of("CLAUDE_CONFIG_DIR", ".claude") / "settings.json",
            "json",
            {"env": settings if target.key else settings | token} | written,
        ),
        install="npm install -g @anthropic-ai/claude-code",
        first_prompt=12_200,
    )


def _codex(target: Target, folders: Folders) -> Launch:
    return codex(target, folders.own, folders.of("CODEX_HOME", ".codex"))


def _opencode(target: Target, folders: Folders) -> Launch:
    limit = {"context": target.context, "output": min(_ANSWER_TOKENS, target.context // 4)}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "edgepp",
        "options": {
            "baseURL": f"{target.url}/v1",
            "apiKey": f"{{env:{KEY_VARIABLE}}}" if target.key else ANY_KEY,
        },
        "models": {target.model: {"name": target.model, "tool_call": True, "limit": limit}},
    }
    named = f"edgepp/{target.model}"
    config = {"provider": {"edgepp": provider}, "model": named, "small_model": named}
    return Launch(
        ("opencode",),
        {"OPENCODE_CONFIG_CONTENT": json.dumps(config)} | ({KEY_VARIABLE: target.key} if target.key else {}),
        config=ConfigFile(folders.of("XDG_CONFIG_HOME", ".config") / "opencode" / "opencode.json", "json", config),
        install="npm install -g opencode-ai",
        first_prompt=7_000,
    )


def _open_webui(target: Target, _: Folders) -> Launch:
    by_ollama = {"OLLAMA_BASE_URL": target.url, "ENABLE_OLLAMA_API": "True", "ENABLE_OPENAI_API": "False"}
    # Open WebUI takes no key for Ollama's API from its environment.
    by_openai = {
        "OPENAI_API_BASE_URL": f"{target.url}/v1",
        "OPENAI_API_KEY": target.key,
        "ENABLE_OPENAI_API": "True",
        "ENABLE_OLLAMA_API": "False",
    }
    return Launch(
        ("open-webui", "serve"),
        by_openai if target.key else by_ollama,
        note="Open WebUI reads these at its first start; later they are in its Admin Settings, under Connections. "
        "In Docker, the host is host.docker.internal instead of 127.0.0.1",
        install="pip install open-webui",
        first_prompt=6_700,
    )


def _zed(target: Target, folders: Folders) -> Launch:
    model = target.model if ":" in target.model else f"{target.model}:latest"
    return Launch(
        ("zed",),
        {"OLLAMA_API_KEY": target.key} if target.key else {},
        config=ConfigFile(
            folders.of("XDG_CONFIG_HOME", ".config") / "zed" / "settings.json",
            "json",
            {
                "language_models": {"ollama": {"api_url": target.url}},
                "agent": {"default_model": {"provider": "ollama", "model": model}},
            },
        ),
        needs_config=True,
        install="see https://zed.dev/download",
    )


def _llm(target: Target, folders: Folders) -> Launch:
    model = {
        "model_id": "edgepp",
        "model_name": target.model,
        "api_base": f"{target.url}/v1",
        "supports_schema": True,
        "supports_tools": True,
    } | ({"api_key_name": "edgepp"} if target.key else {})
    own = folders.own / "llm"
    entry = f"- {json.dumps(model)}\n"
    return Launch(
        ("llm",),
        {"LLM_USER_PATH": str(own)} | ({"OPENAI_API_KEY": target.key} if target.key else {}),
        {own / "extra-openai-models.yaml": entry, own / "default_model.txt": "edgepp"},
        ConfigFile(_llm_folder(folders) / "extra-openai-models.yaml", "yaml list", entry),
        note="after --write: llm -m edgepp" + (", with the key in OPENAI_API_KEY" if target.key else ""),
        install="pip install llm",
    )


def _llm_folder(folders: Folders) -> Path:
    """The folder of llm's files: ``LLM_USER_PATH``, or click's choice for the operating system, as in llm."""
    import click

    named = folders.environment.get("LLM_USER_PATH")
    return Path(named) if named else Path(click.get_app_dir("io.datasette.llm"))


CLIENTS: Mapping[str, Callable[[Target, Folders], Launch]] = {
    "claude": _claude,
    "codex": _codex,
    "opencode": _opencode,
    "open-webui": _open_webui,
    "zed": _zed,
    "llm": _llm,
}


def launch_of(client: str, target: Target, own: Path) -> Launch:
    """Settings and command of ``client`` for this user; ``own`` is the folder of edgepp's own files for clients."""
    return CLIENTS[client](target, Folders(own, Path.home(), os.environ))
