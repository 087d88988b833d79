"""Reports to the coordinator of how far a load is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from edgepp.errors import EdgeppError
from edgepp.wire.messages.nodes import Load, Loading

_INTERVAL_S = 0.25
OnFetched: TypeAlias = Callable[[int, int, str], None]
"""Called with the bytes done, the bytes in all, and the file at hand."""


def progress_reports(
    load: Load, activity: str, report: Callable[[Loading], None], superseded: Callable[[], bool]
) -> OnFetched:
    """Callback for the progress of ``load``, which raises an error once the load is ``superseded``."""
    reported_s = 0.0

    def progress(done: int, total: int, _: str) -> None:
        nonlocal reported_s
        if superseded():
            raise EdgeppError("another assignment has arrived")
        now_s = time.monotonic()
        if now_s - reported_s >= _INTERVAL_S:
            reported_s = now_s
            report(Loading(load.plan_id, load.slot, done, total, activity))

    return progress
