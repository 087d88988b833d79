"""The life of a child process that serves: it tells its parent when it is ready, and ends when its input does."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable

import psutil

from edgepp.stage_process.config import StageConfig
from edgepp.stage_process.reports import report
from edgepp.wire.security import Gate

_is_ready = threading.Event()


def is_ready() -> bool:
    """Whether the parent was told that this process is ready; a parent reads no reports after that."""
    return _is_ready.is_set()


def report_ready(started_s: float, **facts: object) -> None:
    """Tell the parent that what was started at ``started_s``, by ``time.perf_counter``, is ready."""
    seconds, resident_bytes = round(time.perf_counter() - started_s, 3), psutil.Process().memory_info().rss
    report("ready", seconds=seconds, resident_bytes=resident_bytes, **facts)
    _is_ready.set()
    gc.collect()
    gc.freeze()  # loaded objects stay: exempt from collections between frames


def watch_parent(config: StageConfig, stop: Callable[[None], None], gate: Gate) -> None:
    """Follow the parent's orders in a thread: keys to admit; at the end of the input, ``stop(None)``."""

    def follow_parent() -> None:
        try:
            for line in sys.stdin:
                gate.admit(config.admitted(json.loads(line)["admit"]))
        finally:
            stop(None)
            time.sleep(2.0)
            os._exit(1)  # the main thread has not ended in time

    threading.Thread(target=follow_parent, name="lifeline", daemon=True).start()
