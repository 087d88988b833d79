"""The server and model for a client, and the settings and command of a client. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

KEY_VARIABLE = "EDGEPP_API_KEY"
"""The environment variable from which an API key is taken."""
ANY_KEY = "edgepp"
"""The key for a client that requires a key, where the cluster requires none."""


@dataclass(frozen=True)
class Target:
    """The HTTP server and the model to use."""

    url: str
    """Base URL of the server, without ``/v1``."""
    model: str
    """Name of the model, as the server lists it."""
    context: int
    """Tokens that prompt and answer may have together, as served."""
    key: str = ""
    """API key; empty for none."""


@dataclass(frozen=True)
class ConfigFile:
    """A file of a client, and the content with which the client uses the cluster without `edgepp launch`."""

    path: Path
    kind: Literal["whole", "json", "yaml list"]
    """``whole``: a file that only edgepp writes; ``json``: an object into which ``content`` is merged; ``yaml list``:
    lines that are added at the end."""
    content: str | Mapping[str, Any]


@dataclass(frozen=True)
class Launch:
    """Settings and command with which one client uses the cluster."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    own_files: Mapping[Path, str] = field(default_factory=dict)
    """Files of edgepp that the client reads: path to text."""
    config: ConfigFile | None = None
    """The file that ``--write`` writes; None where the client reads all settings from its environment."""
    needs_config: bool = False
    """Whether the client takes its settings from the file of ``config`` alone, not from environment or command line."""
    note: str = ""
    """A sentence on further work of the user; empty where there is none."""
    install: str = ""
    """The command that installs the client."""
    first_prompt: int = 0
    """Tokens that the client sends before the first question; 0 for next to none."""
