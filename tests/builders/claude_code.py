"""Claude Code, asked one question."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.builders.npm_clients import client_environment, npm_client

_CLAUDE_S = 300


def ask_claude_code(url: str, model: str, folder: Path, prompt: str, **settings: str) -> list[dict[str, Any]]:
    """The messages that Claude Code prints in ``folder/project``, the result last; its home is ``folder/home``."""
    command = npm_client("@anthropic-ai/claude-code", "claude")
    given = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "any",
        "ANTHROPIC_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        **settings,
    }
    project = folder / "project"
    project.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [command, "-p", prompt, "--allowedTools", "Bash,Read", "--output-format", "stream-json", "--verbose"],
        cwd=project,
        env=client_environment(folder / "home", given),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_CLAUDE_S,
        check=False,
    )
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert printed, done.stderr[-2000:]
    assert printed[-1]["type"] == "result", done.stdout[-2000:] + done.stderr[-2000:]
    return printed
