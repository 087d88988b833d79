"""The newest events of a coordinator, kept for its status and passed on to the program."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from edgepp.events import Event, OnEvent

MAX_EVENTS = 50


class RecentEvents:
    """Receives events, passes each on, and keeps the newest ``MAX_EVENTS``. An ``OnEvent``, safe for any thread."""

    def __init__(self, on_event: OnEvent, now_s: Callable[[], float] = time.time) -> None:
        """``now_s`` gives seconds since 1970."""
        self._on_event = on_event
        self._now_s = now_s
        self._kept: deque[tuple[float, Event]] = deque(maxlen=MAX_EVENTS)

    def __call__(self, event: Event) -> None:
        """Keep an event and pass it on."""
        self._kept.append((self._now_s(), event))
        self._on_event(event)

    def to_json(self) -> list[dict[str, Any]]:
        """The events, oldest first: seconds since 1970, kind, and a line for people."""
        return [
            {"at_s": round(at_s, 1), "kind": type(one).__name__, "text": str(one)} for at_s, one in list(self._kept)
        ]
