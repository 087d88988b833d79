"""Settings of Codex CLI: a provider that speaks the Responses API, and a catalogue with the model of the cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgepp.ui.launch.settings import KEY_VARIABLE, ConfigFile, Launch, Target

_INSTRUCTIONS = """\
You are a coding agent. You work in the user's terminal, in the current folder.
Use the tools to look at files, to change them and to run commands; do not guess what a file holds.
Work in small steps until the task is done, then say in a few sentences what you did."""
"""Instructions in place of Codex's own, which have some 4,000 tokens."""
_SMALL_CONTEXT = 32_768
"""Context in tokens below which Codex gets no optional tools, whose descriptions have some 3,000 tokens."""
_SPARE_FEATURES = ("goals", "multi_agent", "view_image")


def codex(target: Target, folder: Path, home: Path) -> Launch:
    """Settings and command of Codex.

    Args:
        target: The server and its model.
        folder: The folder of the catalogue, which Codex reads at every start.
        home: Codex's own folder, which ``CODEX_HOME`` names.
    """
    catalogue = folder / "codex-models.json"
    settings = _settings(target, catalogue)
    overrides = [word for name, value in settings.items() for word in ("-c", f"{name}={json.dumps(value)}")]
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    return Launch(
        ("codex", *overrides),
        {KEY_VARIABLE: target.key} if target.key else {},
        {catalogue: json.dumps({"models": [_model(target)]}, indent=1) + "\n"},
        ConfigFile(home / "edgepp.config.toml", "whole", "\n".join(lines) + "\n"),
        note="after --write: codex --profile edgepp",
        install="npm install -g @openai/codex",
        first_prompt=2_000,
    )


def _settings(target: Target, catalogue: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "model": target.model,
        "model_provider": "edgepp",
        "model_catalog_json": str(catalogue),
        "model_providers.edgepp.name": "edgepp",
        "model_providers.edgepp.base_url": f"{target.url}/v1",
        "model_providers.edgepp.wire_api": "responses",
        "web_search": "disabled",
    }
    if target.key:  # Codex does not start if the variable in ``env_key`` is not set
        settings["model_providers.edgepp.env_key"] = KEY_VARIABLE
    if target.context < _SMALL_CONTEXT:
        settings |= {f"features.{name}": False for name in _SPARE_FEATURES}
    return settings


def _model(target: Target) -> dict[str, Any]:
    """An entry of Codex's catalogue. Codex compacts a conversation when a quarter of the context is left."""
    return {
        "slug": target.model,
        "display_name": target.model,
        "description": "the model of an edgepp cluster",
        "base_instructions": _INSTRUCTIONS,
        "context_window": target.context,
        "auto_compact_token_limit": target.context * 3 // 4,
        "truncation_policy": {"mode": "tokens", "limit": min(10_000, max(500, target.context // 8))},
        "input_modalities": ["text"],
        "shell_type": "unified_exec",
        "apply_patch_tool_type": "freeform",
        "supports_parallel_tool_calls": True,
        "supported_reasoning_levels": [],
        "support_verbosity": False,
        "experimental_supported_tools": [],
        "supported_in_api": True,
        "visibility": "list",
        "priority": 0,
    }
