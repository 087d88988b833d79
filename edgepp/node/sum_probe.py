"""The node's side of measuring the cost of a sum over two machines: one probe process at a time, in a thread."""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from edgepp.child_process import interrupts_held, python_command
from edgepp.stage_process.compute_policy import stage_environment
from edgepp.stage_process.config import StageSettings
from edgepp.stage_process.sum_probe import SumProbeConfig
from edgepp.wire.address import Address
from edgepp.wire.messages.rank_meetings import MeasureSum, RankAt, RankListens, SumMeasured
from edgepp.wire.text_fields import sentence

log = logging.getLogger("edgepp.node")

MEASURE_S = 20.0
"""How long one measurement may take, with the start of both processes."""


class SumProbe(threading.Thread):
    """Measures sums with other nodes when the coordinator orders it. Must be closed."""

    def __init__(self, settings: StageSettings, report: Callable[[RankListens | SumMeasured], None]) -> None:
        """``settings`` are those of the node's first stage process; ``report`` is called in this thread."""
        super().__init__(name="sum-probe", daemon=True)
        self._settings = settings
        self._report = report
        self._orders: queue.SimpleQueue[MeasureSum | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[RankAt] = queue.SimpleQueue()
        self._admitted: tuple[str, ...] = ()
        self._group = 0
        """The id of the measurement under way."""
        self._child: subprocess.Popen[bytes] | None = None
        self._closing = False

    def measure(self, order: MeasureSum) -> None:
        """Measure, in place of what is measured now. Safe from any thread."""
        self._orders.put(order)
        self._kill()

    def tell(self, message: RankAt) -> None:
        """Note where the other rank listens. Safe from any thread."""
        if message.group == self._group:
            self._told.put(message)

    def admit(self, keys: Sequence[str]) -> None:
        """Admit these keys to later measurements. Safe from any thread."""
        self._admitted = tuple(keys)

    def close(self) -> None:
        """End the thread and its process."""
        self._closing = True
        self._orders.put(None)
        self._kill()
        self.join()

    def run(self) -> None:
        """Follow the orders until closed."""
        while (order := self._orders.get()) is not None:
            if not self._orders.empty():
                continue  # a later order counts
            try:
                reason = self._measure(order)
            except Exception as error:
                log.exception("measuring a sum failed")
                reason = f"{type(error).__name__}: {error}"
            if reason and order.rank == 0 and not self._closing:
                self._report(SumMeasured(order.group, 0, 1, 0, sentence(reason)))

    def _measure(self, order: MeasureSum) -> str:
        """Run one probe process; returns why there is no measurement, or an empty text."""
        self._group, keys = order.group, self._settings.keys
        if keys is None:
            return "this node has no keys"
        listen, awake = str(Address(self._settings.listen.host, 0)), self._settings.policy.awake
        config = SumProbeConfig(
            order.group, order.rank, order.width, listen, awake, self._admitted, keys.public, keys.secret
        )
        with interrupts_held():
            started = subprocess.Popen(  # noqa: S603 - a fixed command
                python_command("edgepp.stage_process.sum_probe"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=stage_environment(1),
            )
        with started as child:
            self._child = child
            deadline = threading.Timer(MEASURE_S, child.kill)
            deadline.start()
            try:
                return self._follow(child, order, config)
            except (BrokenPipeError, queue.Empty):
                return "the other machine did not come"
            finally:
                self._child = None
                deadline.cancel()
                deadline.join()
                child.kill()

    def _follow(self, child: subprocess.Popen[bytes], order: MeasureSum, config: SumProbeConfig) -> str:
        _write(child, asdict(config))
        while True:
            event = _event(child)
            match event.get("event"):
                case "rank":
                    self._report(RankListens(order.group, Address.parse(event["address"]).port))
                    other = self._other(order)
                    places, keys = ["", ""], [config.public, config.public]
                    places[other.rank], keys[other.rank] = other.addresses, other.key
                    _write(child, {"ranks": places, "keys": keys})
                case "measured":
                    if order.rank == 0:
                        figures = (event["row_ns"], event["rows"], event["rows_ns"])
                        self._report(SumMeasured(order.group, *figures, reason=""))
                    return ""
                case "error":
                    return str(event["message"])
                case _:
                    return "the other machine did not come, or the measurement took too long"

    def _other(self, order: MeasureSum) -> RankAt:
        while True:
            message = self._told.get(timeout=MEASURE_S)
            if message.group == order.group and message.rank == 1 - order.rank:
                return message

    def _kill(self) -> None:
        if (child := self._child) is not None:
            child.kill()


def _write(child: subprocess.Popen[bytes], line: dict[str, Any]) -> None:
    if child.stdin is not None:
        child.stdin.write(json.dumps(line).encode() + b"\n")
        child.stdin.flush()


def _event(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next report of the child; empty where it has ended."""
    line = child.stdout.readline() if child.stdout is not None else b""
    event: dict[str, Any] = json.loads(line) if line else {}
    return event
