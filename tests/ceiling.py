"""The bounds of one hostile input, for tests and fuzz targets."""

from __future__ import annotations

import logging
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

CPU_S = 2.0
BYTES = 16 << 20


class _Errors(logging.Handler):
    """Keeps the errors that a boundary logged instead of raising them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def ceiling() -> Iterator[None]:
    """Fail where the body takes more processor time or memory than one input may, or logs an unexpected error."""
    errors, log = _Errors(), logging.getLogger("edgepp")
    log.addHandler(errors)
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    held, began_s = tracemalloc.get_traced_memory()[0], time.thread_time()
    try:
        yield
        spent_s, peak = time.thread_time() - began_s, tracemalloc.get_traced_memory()[1] - held
    finally:
        if not was_tracing:
            tracemalloc.stop()
        log.removeHandler(errors)
    for record in errors.records:
        cause = record.exc_info[1] if record.exc_info else None
        raise AssertionError(f"logged as an error: {record.getMessage()}") from cause
    assert spent_s < CPU_S
    assert peak < BYTES
