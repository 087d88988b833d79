"""`edgepp launch`: print, start, write or undo the settings of a client."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgepp.cluster.state_files import config_dir
from edgepp.errors import EdgeppError, UsageError
from edgepp.safe_files import write_atomically
from edgepp.ui.launch.clients import launch_of
from edgepp.ui.launch.config_files import undo_config, write_config
from edgepp.ui.launch.settings import KEY_VARIABLE, ConfigFile, Launch, Target
from edgepp.ui.launch.target import find_target
from edgepp.ui.screen import say

_PROMPTS_OF_CONTEXT = 2.5
"""Ratio of the context to the client's first prompt below which a warning is printed."""


def print_settings(client: str, url: str | None, arguments: Sequence[str]) -> None:
    """Print the environment and the command, and the settings that `--write` would write; no key is printed.

    Raises:
        EdgeppError: no server is found.
    """
    target, launch = _prepared(client, url)
    _write_own_files(launch)
    say(f"# {client} with {target.model} at {target.url}, {target.context} tokens of context")
    for name, value in launch.environment.items():
        shown = f'"${KEY_VARIABLE}"' if target.key and value == target.key else shlex.quote(value)
        say(f"export {name}={shown}")
    if not launch.needs_config:
        say(shlex.join((*launch.command, *arguments)))
    if launch.config is not None:
        say(f"\n# or in {launch.config.path}:")
        say(_text(launch.config))
    if launch.note:
        say(f"# {launch.note}")


def start(client: str, url: str | None, arguments: Sequence[str]) -> None:
    """Start the client in the place of this process.

    Raises:
        UsageError: the client is not installed, or reads its settings from a file alone.
        EdgeppError: no server is found, or a file of edgepp cannot be written.
    """
    _, launch = _prepared(client, url)
    program = shutil.which(launch.command[0])
    if program is None:
        raise UsageError(f"{launch.command[0]} is not installed", f"install it: {launch.install}; or use --print")
    if launch.needs_config and not _record(client).exists():
        raise UsageError(
            f"{client} reads its settings from a file alone",
            f"`edgepp launch {client} --write` adds them, --undo removes them, --print shows them",
        )
    _write_own_files(launch)
    environment = {**os.environ, **launch.environment}
    os.execve(program, [*launch.command, *arguments], environment)  # noqa: S606 - no shell is wanted


def write(client: str, url: str | None) -> None:
    """Write the settings into the client's own file.

    Raises:
        UsageError: the client has no such file.
        EdgeppError: no server is found, or a file cannot be read or written.
    """
    _, launch = _prepared(client, url)
    if launch.config is None:
        raise UsageError(f"{client} reads its settings from its environment", f"use `edgepp launch {client} --print`")
    _write_own_files(launch)
    path = write_config(launch.config, _record(client))
    say(f"wrote {path}; `edgepp launch {client} --undo` restores it")
    if launch.note:
        say(launch.note)


def undo(client: str) -> None:
    """Remove the settings that ``write`` wrote.

    Raises:
        EdgeppError: a file cannot be read or written, or was changed so that nothing can be undone.
    """
    path = undo_config(_record(client))
    say(f"restored {path}" if path is not None else f"nothing was written for {client}")


def _prepared(client: str, url: str | None) -> tuple[Target, Launch]:
    target = find_target(url, os.environ.get(KEY_VARIABLE, "").strip())
    launch = launch_of(client, target, _folder())
    if warning := _context_warning(client, target, launch):
        say(warning, err=True)
    return target, launch


def _context_warning(client: str, target: Target, launch: Launch) -> str:
    """A warning that the client has too few tokens of context for its work; empty where it has enough."""
    if target.context >= _PROMPTS_OF_CONTEXT * launch.first_prompt:
        return ""
    left = target.context - launch.first_prompt
    effect = f"leaves {left:,} tokens for the work" if left > 0 else "is too small for any question"
    return (
        f"warning: {client} sends some {launch.first_prompt:,} tokens before the first question, so a context of "
        f"{target.context:,} tokens {effect}; serve with more: `edgepp serve --context 32768`"
    )


def _folder() -> Path:
    return config_dir() / "launch"


def _record(client: str) -> Path:
    return _folder() / f"{client}-undo.json"


def _write_own_files(launch: Launch) -> None:
    for path, text in launch.own_files.items():
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, text.encode())
        except OSError as error:
            raise EdgeppError(f"cannot write {path}: {error.strerror}", "set EDGEPP_HOME to another folder") from error


def _text(config: ConfigFile) -> str:
    content = config.content
    return content.rstrip("\n") if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
