"""How busy an engine is. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.engine.timing import Reuse


@dataclass(frozen=True)
class EngineLoad:
    """How busy an engine is."""

    live: int
    """Admitted requests."""
    waiting: int
    """Requests that wait to be admitted."""
    held: int
    """KV positions of the admitted requests."""
    kept: int
    """KV positions kept for the prefixes of future prompts."""
    reuse: Reuse
    preempted: int
    """How often a request lost its KV positions to others."""
