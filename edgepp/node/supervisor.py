"""Supervisor of one stage slot: brings its stage process to the assigned layer range, in a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from edgepp.errors import EdgeppError
from edgepp.layers import LayerRange
from edgepp.model.fetch import fetch
from edgepp.model.weights.model_parts import ModelParts
from edgepp.node.stage_handle import Ready, StageProcess
from edgepp.stage_process.config import StageSettings
from edgepp.wire.messages import Load, Loaded, Loading, NotLoaded
from edgepp.wire.text_fields import sentence

log = logging.getLogger("edgepp.node")

_CHECK_INTERVAL_S = 0.2
_PROGRESS_S = 0.25

Report = Loading | Loaded | NotLoaded


class _SupersededError(EdgeppError):
    """Another assignment has arrived meanwhile."""


class StageSupervisor(threading.Thread):
    """Runs at most one stage process, and reports its progress, readiness and end."""

    def __init__(self, index: int, settings: StageSettings, report: Callable[[Report], None]) -> None:
        """``index`` is the number of the slot; ``report`` is called in the thread of the supervisor."""
        super().__init__(name=f"stage-slot-{index}", daemon=True)
        self._index = index
        self._settings = settings
        self._report = report
        self._orders: queue.SimpleQueue[Load | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._admitted: tuple[str, ...] = ()
        self._child: StageProcess | None = None
        self._running: tuple[Load, Ready] | None = None
        self._loading: Load | None = None

    @property
    def resident_bytes(self) -> int:
        """Memory of the stage process when it became ready; 0 without a ready stage process."""
        running = self._running
        return running[1].resident_bytes if running else 0

    def assign(self, load: Load | None) -> None:
        """Run the layers of ``load`` from now on, or none for None. Safe from any thread."""
        if load is None or load != self._loading:
            self._orders.put(load)

    def admit(self, keys: Sequence[str]) -> None:
        """Admit exactly these keys to the stage. Safe from any thread."""
        self._admitted = tuple(keys)
        child = self._child
        if child is not None:
            child.admit(self._admitted)

    def close(self) -> None:
        """End the stage process and the thread."""
        self._closing.set()
        self._orders.put(None)
        self.join()

    def run(self) -> None:
        """Follow the assignments until closed."""
        try:
            while not self._closing.is_set():
                try:
                    self._step()
                except Exception as error:
                    log.exception("stage slot %d failed", self._index)
                    load = self._running[0] if self._running else None
                    if load is not None:
                        self._running = None
                        self._report(
                            NotLoaded(
                                load.plan_id,
                                self._index,
                                _describe(error),
                                "read the messages of edgepp on that node",
                            )
                        )
        finally:
            self._stop()

    def _step(self) -> None:
        try:
            load = self._orders.get(timeout=_CHECK_INTERVAL_S)
        except queue.Empty:
            self._check_child()
            return
        while not self._orders.empty():
            load = self._orders.get()
        self._apply(load)

    def _apply(self, load: Load | None) -> None:
        if load is None or self._closing.is_set():
            self._stop()
            return
        running = self._running
        if running is not None and _same_stage(running[0], load):
            self._running = (load, running[1])
            self._report_loaded()
            return
        self._loading = load
        try:
            self._stop()
            self._start(load)
        except _SupersededError:
            self._stop()
        except EdgeppError as error:
            self._stop()
            self._report(NotLoaded(load.plan_id, self._index, sentence(error), sentence(error.hint)))
        except Exception as error:
            log.exception("stage slot %d failed", self._index)
            self._stop()
            self._report(
                NotLoaded(load.plan_id, self._index, _describe(error), "read the messages of edgepp on that node")
            )
        finally:
            self._loading = None

    def _start(self, load: Load) -> None:
        layers = LayerRange(load.start, load.stop)
        path = fetch(load.model, ModelParts(layers=layers), self._progress(load, "fetching"))
        config = self._settings.config(
            path, load.model, layers, exact=load.exact, kv_bits=load.kv_bits or None, admit=self._admitted
        )
        self._child = StageProcess(config)
        on_progress = self._progress(load, "loading")
        ready = self._child.wait_ready(lambda done, total: on_progress(done, total, ""))
        self._child.admit(self._admitted)  # the keys may have changed meanwhile
        self._running = (load, ready)
        self._report_loaded()

    def _progress(self, load: Load, activity: str) -> Callable[[int, int, str], None]:
        reported_s = 0.0

        def progress(done: int, total: int, _: str) -> None:
            nonlocal reported_s
            if not self._orders.empty():
                raise _SupersededError("another assignment has arrived")
            now_s = time.monotonic()
            if now_s - reported_s >= _PROGRESS_S:
                reported_s = now_s
                self._report(Loading(load.plan_id, self._index, done, total, activity))

        return progress

    def _report_loaded(self) -> None:
        if self._running is None or self._child is None:
            return
        load, ready = self._running
        self._report(
            Loaded(
                plan_id=load.plan_id,
                slot=self._index,
                port=ready.address.port,
                pid=self._child.pid,
                backend=ready.backend,
                device=ready.device,
                weight_bytes=ready.weight_bytes,
                resident_bytes=ready.resident_bytes,
                prefill_us=ready.prefill_us,
                decode_us=ready.decode_us,
            )
        )

    def _check_child(self) -> None:
        """Report a stage process that has ended by itself."""
        if self._running is None or self._child is None or (status := self._child.wait(0)) is None:
            return
        load = self._running[0]
        self._stop()
        reason = f"its stage process ended by itself (exit status {status})"
        hint = "status -9 usually means that memory ran out: lower --memory there" if status == -9 else ""
        self._report(NotLoaded(load.plan_id, self._index, reason, hint))

    def _stop(self) -> None:
        self._running = None
        child, self._child = self._child, None
        if child is not None:
            child.stop()


def _describe(error: Exception) -> str:
    return sentence(f"{type(error).__name__}: {error}")


def _same_stage(one: Load, other: Load) -> bool:
    """Whether two ``Load`` messages differ at most in plan version and slot."""
    return one._replace(plan_id=0, slot=0) == other._replace(plan_id=0, slot=0)
