"""Log lines that a flood of repeated events cannot multiply."""

from __future__ import annotations

import re
from collections import Counter

MAX_SOURCES = 1024


class LogSampler:
    """Chooses which events to log: per source and event the 1st, 10th, 100th …, so that no flood fills a disk."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def should_log(self, source: str, event: str) -> bool:
        """Count ``event`` of ``source``; whether to log it. Sources beyond ``MAX_SOURCES`` count as one."""
        if (source, event) not in self._counts and len(self._counts) >= MAX_SOURCES:
            source = "others"
        self._counts[source, event] += 1
        return re.fullmatch("10*", str(self._counts[source, event])) is not None
