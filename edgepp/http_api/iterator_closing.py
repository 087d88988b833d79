"""Iterators of answers that are closed when their reader is done with them, which cancels the answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T", bound=AsyncIterator[Any])


@asynccontextmanager
async def closing(events: T) -> AsyncIterator[T]:
    """``events``, closed at the end of the block if they can be closed, instead of by garbage collection."""
    try:
        yield events
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
