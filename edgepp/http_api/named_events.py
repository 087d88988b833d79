"""Server-sent events with a name, by which clients tell them apart."""

from __future__ import annotations

from typing import Any

import msgspec


def named_event(name: str, data: Any) -> bytes:
    """One event. JSON has no line break, so that ``data`` is one line."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))
