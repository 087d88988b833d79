"""Supervisor of one stage slot: brings its stage process to the assigned layer range, in a thread of its own.

A stage process that ends by itself, or hangs and is ended, is started again at once: the coordinator hears first
``NotLoaded`` and then ``Loaded``. A stage that keeps ending is left to the coordinator, which may give its layers to
another node.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgepp.errors import EdgeppError
from edgepp.layers import LayerRange
from edgepp.model.fetch import fetch
from edgepp.model.weights.model_parts import ModelParts
from edgepp.node.stage_handle import Ready, StageProcess
from edgepp.stage_process.config import StageSettings
from edgepp.wire.messages import Load, Loaded, Loading, NotLoaded, Restart
from edgepp.wire.text_fields import sentence

log = logging.getLogger("edgepp.node")

EARLY_END_S = 10.0
"""A stage process that ends within this time of being ready has ended early."""
MAX_EARLY_ENDS = 2
"""Early ends in a row after which the stage is not started again until the coordinator orders it."""
_PROGRESS_S = 0.25

Report = Loading | Loaded | NotLoaded


@dataclass(frozen=True)
class _Assignment:
    """What the slot is to run: a stage, or nothing. A later assignment supersedes it."""

    load: Load | None


@dataclass(frozen=True)
class _Ended:
    """A stage process has ended, by itself or not."""

    child: StageProcess


@dataclass(frozen=True)
class _Stage:
    """A stage process that is ready."""

    load: Load
    child: StageProcess
    ready: Ready
    ready_s: float
    """When the process became ready, by ``time.monotonic``."""
    early_ends: int
    """Stage processes before this one, in a row, that ended early."""


_Order = _Assignment | _Ended | Restart


class StageSupervisor(threading.Thread):
    """Runs at most one stage process, and reports its progress, readiness and end."""

    def __init__(self, index: int, settings: StageSettings, report: Callable[[Report], None]) -> None:
        """``index`` is the number of the slot; ``report`` is called in the thread of the supervisor."""
        super().__init__(name=f"stage-slot-{index}", daemon=True)
        self._index = index
        self._settings = settings
        self._report = report
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._newest = self._taken = _Assignment(None)
        """The assignment that arrived last, and the one that the thread has taken up; equal if none is waiting."""
        self._closing = threading.Event()
        self._admitted: tuple[str, ...] = ()
        self._child: StageProcess | None = None
        """The stage process, ready or loading."""
        self._running: _Stage | None = None
        self._loading: Load | None = None
        self._hanging: StageProcess | None = None
        """The stage process that was ended because the coordinator found that it hangs."""

    @property
    def resident_bytes(self) -> int:
        """Memory of the stage process when it became ready; 0 without a ready stage process."""
        running = self._running
        return running.ready.resident_bytes if running else 0

    def assign(self, load: Load | None) -> None:
        """Run the layers of ``load`` from now on, or none for None. Safe from any thread."""
        if load is not None and load == self._loading:
            return
        self._newest = _Assignment(load)
        self._orders.put(self._newest)
        if self._loading is not None and (child := self._child) is not None:
            child.kill()  # it may hang

    def restart(self, order: Restart) -> None:
        """End the stage process and start it again, if it is the one that ``order`` names. Safe from any thread."""
        self._orders.put(order)

    def admit(self, keys: Sequence[str]) -> None:
        """Admit exactly these keys to the stage. Safe from any thread."""
        self._admitted = tuple(keys)
        child = self._child
        if child is not None:
            child.admit(self._admitted)

    def close(self) -> None:
        """End the stage process and the thread."""
        self._closing.set()
        self.assign(None)
        self.join()

    def run(self) -> None:
        """Follow the assignments until closed."""
        try:
            while not self._closing.is_set():
                try:
                    self._follow(self._orders.get())
                except Exception as error:
                    log.exception("stage slot %d failed", self._index)
                    running, self._running = self._running, None
                    if running is not None:
                        self._report_failure(running.load, *_unexpected(error))
        finally:
            self._stop()

    @property
    def _superseded(self) -> bool:
        """Whether another assignment waits."""
        return self._newest is not self._taken

    def _follow(self, order: _Order) -> None:
        running = self._running
        match order:
            case _Ended():
                if running is not None and running.child is order.child:
                    self._on_end(running)
            case Restart():
                if running is not None and running.child.pid == order.pid:
                    log.warning("the stage process %d hangs, and is started again", order.pid)
                    self._hanging = running.child
                    running.child.kill()  # ``_Ended`` follows
            case _Assignment():
                if order is self._newest:
                    self._taken = order
                    self._apply(order.load)

    def _apply(self, load: Load | None) -> None:
        if load is None or self._closing.is_set():
            self._stop()
            return
        running = self._running
        if running is not None and _same_stage(running.load, load):
            self._running = replace(running, load=load)
            self._report_loaded(self._running)
            return
        self._load(load, early_ends=0)

    def _load(self, load: Load, early_ends: int) -> None:
        """Run ``load`` in place of what runs now; report ``Loaded``, or ``NotLoaded`` where it cannot run."""
        self._loading = load
        try:
            self._stop()
            self._start(load, early_ends)
        except EdgeppError as error:
            self._stop()
            if not self._superseded:
                self._report_failure(load, sentence(error), sentence(error.hint))
        except Exception as error:
            log.exception("stage slot %d failed", self._index)
            self._stop()
            self._report_failure(load, *_unexpected(error))
        finally:
            self._loading = None

    def _start(self, load: Load, early_ends: int) -> None:
        layers = LayerRange(load.start, load.stop)
        path = fetch(load.model, ModelParts(layers=layers), self._progress(load, "fetching"))
        config = self._settings.config(
            path, load.model, layers, exact=load.exact, kv_bits=load.kv_bits or None, admit=self._admitted
        )
        self._child = child = StageProcess(config)
        on_progress = self._progress(load, "loading")
        ready = child.wait_ready(lambda done, total: on_progress(done, total, ""))
        child.admit(self._admitted)  # the keys may have changed meanwhile
        self._running = _Stage(load, child, ready, time.monotonic(), early_ends)
        self._report_loaded(self._running)
        child.on_end(lambda: self._orders.put(_Ended(child)))

    def _progress(self, load: Load, activity: str) -> Callable[[int, int, str], None]:
        reported_s = 0.0

        def progress(done: int, total: int, _: str) -> None:
            nonlocal reported_s
            if self._superseded:
                raise EdgeppError("another assignment has arrived")
            now_s = time.monotonic()
            if now_s - reported_s >= _PROGRESS_S:
                reported_s = now_s
                self._report(Loading(load.plan_id, self._index, done, total, activity))

        return progress

    def _report_loaded(self, stage: _Stage) -> None:
        load, ready = stage.load, stage.ready
        self._report(
            Loaded(
                plan_id=load.plan_id,
                slot=self._index,
                port=ready.address.port,
                pid=stage.child.pid,
                backend=ready.backend,
                device=ready.device,
                weight_bytes=ready.weight_bytes,
                resident_bytes=ready.resident_bytes,
                prefill_us=ready.prefill_us,
                decode_us=ready.decode_us,
            )
        )

    def _report_failure(self, load: Load, reason: str, hint: str) -> None:
        self._report(NotLoaded(load.plan_id, self._index, reason, hint))

    def _on_end(self, stage: _Stage) -> None:
        """Report the end of a stage process, and start the stage again unless it keeps ending."""
        early_ends = stage.early_ends + 1 if time.monotonic() - stage.ready_s < EARLY_END_S else 0
        restarting = early_ends < MAX_EARLY_ENDS
        status = stage.child.stop()
        if stage.child is self._hanging:
            reason, hint = "its stage process hung, and was ended", ""
        else:
            reason = f"its stage process ended by itself (exit status {status})"
            hint = "status -9 usually means that memory ran out: lower --memory there" if status == -9 else ""
        self._report(NotLoaded(stage.load.plan_id, self._index, reason, hint, restarting))
        if restarting:
            self._load(stage.load, early_ends)
        else:
            self._stop()

    def _stop(self) -> None:
        self._running = self._hanging = None
        child, self._child = self._child, None
        if child is not None:
            child.stop()


def _unexpected(error: Exception) -> tuple[str, str]:
    """Reason and hint of an error of edgepp itself."""
    return sentence(f"{type(error).__name__}: {error}"), "read the messages of edgepp on that node"


def _same_stage(one: Load, other: Load) -> bool:
    """Whether two ``Load`` messages differ at most in plan version and slot."""
    return one._replace(plan_id=0, slot=0) == other._replace(plan_id=0, slot=0)
