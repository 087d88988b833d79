"""The result of one check of `edgepp doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    """Name of the check."""
    ok: bool | None
    """False for a fault, None for a remark that is no fault."""
    found: str
    """A phrase with the result, for people."""
    do: str = ""
    """The next step; empty if there is none."""


@dataclass(frozen=True)
class Known:
    """Node id and cluster id in the configuration of this machine; each is None before it exists."""

    node: str | None
    cluster: str | None


Check = Callable[[], Finding]
