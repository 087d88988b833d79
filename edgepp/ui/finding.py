"""What a check of `edgepp doctor` finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line: ``ok`` is None for what cannot be told, or is neither good nor bad. ``do`` is the next step, if any."""

    check: str
    ok: bool | None
    found: str
    do: str = ""


@dataclass(frozen=True)
class Known:
    """What this machine's configuration says: its node id and its cluster's, None where there is none yet."""

    node: str | None
    cluster: str | None


Check = Callable[[], Finding]
