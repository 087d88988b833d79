"""Steps of the coordinator's thread whose unexpected errors are reported, so that the thread goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from edgepp.events import OnEvent, StepFailed
from edgepp.wire.log_sampler import LogSampler

log = logging.getLogger("edgepp.coordinator")


class GuardedSteps:
    """Runs steps of one thread, each guarded from the errors of the others."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._log_sampler = LogSampler()

    @contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        """Report an unexpected error of this step, and go on."""
        try:
            yield
        except Exception as error:
            log.exception("%s failed", what)
            if self._log_sampler.should_log(type(error).__name__, what):
                self._on_event(StepFailed(what, f"{type(error).__name__}: {error}"))
