"""Waits between tries to open a pipeline: each failure in a row doubles the wait."""

from __future__ import annotations

import time

from edgepp.coordinator.failure_backoff import doubled_s

FIRST_REOPEN_S = 0.5
"""The wait before a retry after the first failure to open a pipeline; each further failure doubles it."""
MAX_REOPEN_S = 8.0


class Reopening:
    """The failures in a row to open one pipeline. Counted by the thread that opens it, read by any."""

    def __init__(self) -> None:
        self.num_failures = 0
        self._failed_s = 0.0

    @property
    def waits(self) -> bool:
        """Whether it is too early for another try."""
        wait_s = doubled_s(FIRST_REOPEN_S, self.num_failures - 1, MAX_REOPEN_S)
        return self.num_failures > 0 and time.monotonic() - self._failed_s < wait_s

    def failed(self) -> None:
        """Note one more failure."""
        self.num_failures += 1
        self._failed_s = time.monotonic()

    def forget(self) -> None:
        """Begin again: another pipeline is wanted, or this one is open."""
        self.num_failures = 0
