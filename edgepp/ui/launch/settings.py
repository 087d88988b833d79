"""What a client needs to know of a cluster, and what a client is started with. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

KEY_VARIABLE = "EDGEPP_API_KEY"
"""The environment variable from which an API key is taken."""
ANY_KEY = "edgepp"
"""The key for clients that want one where the cluster wants none."""


@dataclass(frozen=True)
class Target:
    """The HTTP server and the model to use."""

    url: str
    """Without ``/v1``."""
    model: str
    context: int
    """Tokens that prompt and answer may have together, as served."""
    key: str = ""


@dataclass(frozen=True)
class ConfigFile:
    """A file of a client, and what it has to hold for the client to use the cluster without `edgepp launch`."""

    path: Path
    kind: Literal["whole", "json", "yaml list"]
    """``whole``: a file that only edgepp writes; ``json``: an object into which ``content`` is merged; ``yaml list``:
    lines that are added at the end."""
    content: str | Mapping[str, Any]


@dataclass(frozen=True)
class Launch:
    """How one client is started so that it uses the cluster."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    own_files: Mapping[Path, str] = field(default_factory=dict)
    """Files of edgepp that the command line names."""
    config: ConfigFile | None = None
    """What ``--write`` writes; None where the client reads all from its environment."""
    needs_config: bool = False
    """Whether the client reads ``config`` alone and cannot be told otherwise."""
    note: str = ""
    """What the user has to do besides, in a sentence."""
    install: str = ""
    """How to install the client."""
    first_prompt: int = 0
    """Tokens that the client sends before the first question; 0 for next to none."""
