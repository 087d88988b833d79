"""The recorded session: system prompt, tools, and what the agent's program sends in each turn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("session.json")


@dataclass(frozen=True)
class Turn:
    """One request of the session: a question of the person, or the result of the call before."""

    user: str | None = None
    result: str | None = None
    notes: tuple[str, ...] = ()
    """What the program adds for the model, such as the date and how many tokens are left."""
    calls: bool = False
    """Whether the model is to call a tool; else the model answers as it likes."""


@dataclass(frozen=True)
class Recording:
    """A session without the answers, which the served model gives."""

    system: str
    tools: tuple[dict[str, Any], ...]
    """Functions with ``name``, ``description`` and ``parameters``."""
    turns: tuple[Turn, ...]
    title: str
    """The system prompt of the request for a title."""


def recording() -> Recording:
    """The session of ``session.json``."""
    stored = json.loads(_FILE.read_text(encoding="utf-8"))
    turns = tuple(Turn(**{**turn, "notes": tuple(turn.get("notes", ()))}) for turn in stored["turns"])
    return Recording(stored["system"], tuple(stored["tools"]), turns, stored["title"])
