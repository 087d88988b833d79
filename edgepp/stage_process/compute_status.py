"""State of the compute thread that the control thread may read at any time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from edgepp.stage_process.model_runner import ModelRunner
from edgepp.wire.frame_marks import clock_us
from edgepp.wire.messages.control import Ping, Pong
from edgepp.wire.traffic import Traffic

log = logging.getLogger("edgepp.stage")


class ComputeStatus:
    """State of the compute thread that the control thread may read at any time."""

    def __init__(self, runner: ModelRunner, other_bytes: Callable[[], int]) -> None:
        """``other_bytes`` tells the memory that sequences take besides their keys and values."""
        self._runner = runner
        self._other_bytes = other_bytes
        self.busy_since_s: float | None = None
        """``time.perf_counter()`` at the start of the present step; None while idle."""
        self.traffic = Traffic()
        """Of the data socket and of the links to next stages, of all epochs."""
        self.bulk_traffic = Traffic()
        """Of the links that carry keys and values, apart: a connection of theirs that ends loses no frame of a step."""

    def pong(self, ping: Ping, received_us: int, *, known: bool) -> Pong:
        """The answer to ``ping``, which came at ``received_us`` by this clock; whether its epoch is ``known``."""
        since_s = self.busy_since_s
        busy_us = 0 if since_s is None else max(1, int((time.perf_counter() - since_s) * 1e6))
        runner = self._runner
        return Pong(
            ping.epoch,
            known,
            busy_us,
            runner.counters.frames,
            runner.counters.dropped,
            runner.counters.void,
            runner.sequences,
            runner.model.kv_bytes + self._other_bytes(),
            self.traffic.received_bytes + self.bulk_traffic.received_bytes,
            self.traffic.sent_bytes + self.bulk_traffic.sent_bytes,
            self.traffic.reconnects,
            ping.sent_us,
            received_us,
            clock_us(),
        )

    def drop(self, reason: object) -> None:
        """Count a dropped frame; log the 1st, 10th, 100th …, so that a flood cannot fill a disk."""
        count = self._runner.counters.dropped = self._runner.counters.dropped + 1
        if str(count).strip("0") == "1":
            log.warning("dropped frame %d: %s", count, reason)
