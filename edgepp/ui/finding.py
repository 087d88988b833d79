"""The result of one check of `edgepp doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One finding: ``ok`` is None for a remark that is no fault; ``do`` is the next step, if any."""

    check: str
    ok: bool | None
    found: str
    do: str = ""


@dataclass(frozen=True)
class Known:
    """Node id and cluster id in the configuration of this machine; None if there is none yet."""

    node: str | None
    cluster: str | None


Check = Callable[[], Finding]
