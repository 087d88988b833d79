"""One stage process of a node, brought to the range that is wanted of it, in a thread of its own."""

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
    """Something else is wanted by now."""


class StageSupervisor(threading.Thread):
    """Runs at most one stage process; whatever becomes of it is reported."""

    def __init__(self, index: int, settings: StageSettings, report: Callable[[Report], None]) -> None:
        super().__init__(name=f"slot-{index}", daemon=True)
        self._index = index
        self._settings = settings
        self._report = report
        self._wanted: queue.SimpleQueue[Load | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._admitted: tuple[str, ...] = ()
        self._child: StageProcess | None = None
        self._running: tuple[Load, Ready] | None = None
        self._loading: Load | None = None

    @property
    def resident_bytes(self) -> int:
        """Memory that the stage process took when it was ready; 0 without one."""
        running = self._running
        return running[1].resident_bytes if running else 0

    def assign(self, load: Load | None) -> None:
        """Run this from now on, or nothing. Safe from any thread."""
        if load is None or load != self._loading:
            self._wanted.put(load)

    def admit(self, keys: Sequence[str]) -> None:
        """Let the owners of ``keys``, and nobody else, connect to the stage. Safe from any thread."""
        self._admitted = tuple(keys)
        child = self._child
        if child is not None:
            child.admit(self._admitted)

    def close(self) -> None:
        """End the stage process and the thread."""
        self._closing.set()
        self._wanted.put(None)
        self.join()

    def run(self) -> None:
        """Serve until closed."""
        try:
            while not self._closing.is_set():
                try:
                    self._turn()
                except Exception as error:
                    log.exception("slot %d failed", self._index)
                    load = self._running[0] if self._running else None
                    if load is not None:
                        self._running = None
                        self._report(
                            NotLoaded(load.plan_version, self._index, _describe(error), "see that node's own messages")
                        )
        finally:
            self._stop()

    def _turn(self) -> None:
        try:
            load = self._wanted.get(timeout=_CHECK_INTERVAL_S)
        except queue.Empty:
            self._watch()
            return
        while not self._wanted.empty():
            load = self._wanted.get()
        self._change(load)

    def _change(self, load: Load | None) -> None:
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
            self._report(NotLoaded(load.plan_version, self._index, sentence(error), sentence(error.hint)))
        except Exception as error:
            log.exception("slot %d failed", self._index)
            self._stop()
            self._report(NotLoaded(load.plan_version, self._index, _describe(error), "see that node's own messages"))
        finally:
            self._loading = None

    def _start(self, load: Load) -> None:
        layers = LayerRange(load.start, load.stop)
        path = fetch(load.model, ModelParts(layers=layers), self._progress(load, "fetching"))
        config = self._settings.config(
            path, load.model, layers, exact=load.exact, kv_bits=load.kv_bits or None, admit=self._admitted
        )
        self._child = StageProcess(config)
        tell = self._progress(load, "loading")
        ready = self._child.wait_ready(lambda done, total: tell(done, total, ""))
        self._child.admit(self._admitted)  # it may have changed meanwhile
        self._running = (load, ready)
        self._report_loaded()

    def _progress(self, load: Load, what: str) -> Callable[[int, int, str], None]:
        told_s = 0.0

        def tell(done: int, total: int, _: str) -> None:
            nonlocal told_s
            if not self._wanted.empty():
                raise _SupersededError("something else is wanted")
            now_s = time.monotonic()
            if now_s - told_s >= _PROGRESS_S:
                told_s = now_s
                self._report(Loading(load.plan_version, self._index, done, total, what))

        return tell

    def _report_loaded(self) -> None:
        if self._running is None or self._child is None:
            return
        load, ready = self._running
        self._report(
            Loaded(
                plan_version=load.plan_version,
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

    def _watch(self) -> None:
        """Notice a stage process that ended by itself."""
        if self._running is None or self._child is None or (status := self._child.wait(0)) is None:
            return
        load = self._running[0]
        self._stop()
        reason = f"its stage process ended by itself (exit status {status})"
        hint = "status -9 usually means that memory ran out: lower --memory there" if status == -9 else ""
        self._report(NotLoaded(load.plan_version, self._index, reason, hint))

    def _stop(self) -> None:
        self._running = None
        child, self._child = self._child, None
        if child is not None:
            child.stop()


def _describe(error: Exception) -> str:
    return sentence(f"{type(error).__name__}: {error}")


def _same_stage(one: Load, other: Load) -> bool:
    """Whether two orders ask for the same stage."""
    return one._replace(plan_version=0, slot=0) == other._replace(plan_version=0, slot=0)
