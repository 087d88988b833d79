"""Waits between tries to open a pipeline, doubled by each failure in a row, and the stage that is not reached."""

from __future__ import annotations

import time

from edgepp.backoff import doubled_s
from edgepp.coordinator.failure_backoff import MAX_FAILURES
from edgepp.engine.stage_handshake import StageUnreached

FIRST_REOPEN_S = 0.5
"""The wait before a retry after the first failure to open a pipeline; each further failure doubles it."""
MAX_REOPEN_S = 8.0


class Reopening:
    """The failures in a row to open one pipeline. Counted by the thread that opens it, read by any."""

    def __init__(self) -> None:
        self.num_failures = 0
        self._failed_s = 0.0
        self._unreached: StageUnreached | None = None
        """Which stage was not reached the last time."""
        self._num_unreached = 0

    @property
    def waits(self) -> bool:
        """Whether it is too early for another try."""
        wait_s = doubled_s(FIRST_REOPEN_S, self.num_failures - 1, MAX_REOPEN_S)
        return self.num_failures > 0 and time.monotonic() - self._failed_s < wait_s

    @property
    def unreachable(self) -> StageUnreached | None:
        """What was not reached ``MAX_FAILURES`` times in a row; None where it was, or for another failure."""
        return self._unreached if self._num_unreached >= MAX_FAILURES else None

    def failed(self, unreached: StageUnreached | None = None) -> None:
        """Note one more failure; ``unreached`` says which stage was not reached."""
        self.num_failures += 1
        before = self._unreached
        again = unreached is not None and before is not None and unreached.link == before.link
        self._num_unreached = self._num_unreached + 1 if again else int(unreached is not None)
        self._unreached = unreached
        self._failed_s = time.monotonic()

    def forget(self) -> None:
        """Begin again: another pipeline is wanted, or this one is open."""
        self.num_failures = self._num_unreached = 0
