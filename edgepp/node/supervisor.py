"""Supervisor of one stage slot: brings its stage process to the assigned layer range, in a thread of its own.

When the layer range changes, the stage process of the former range stays for a while beside the new one where the
memory allows, so that sequences can move from it to other stages.

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
from edgepp.layer_range import LayerRange
from edgepp.model.fetch import fetch
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.model_parts import ALL_PARTS, ModelParts
from edgepp.node.load_progress import OnFetched, progress_reports
from edgepp.node.rank_meeting import RankMeeting
from edgepp.node.slot_stages import SlotStage, SlotStages, fits_beside
from edgepp.node.stage_handle import Ready, StageProcess
from edgepp.node.stage_ranks import StageChild, start_stage
from edgepp.stage_process.config import RankConfig, StageConfig, StageSettings
from edgepp.wire.messages.nodes import Load, Loaded, Loading, NotLoaded, Restart, Retire
from edgepp.wire.messages.rank_meetings import RankAt, RankListens
from edgepp.wire.text_fields import sentence

log = logging.getLogger("edgepp.node")

EARLY_END_S = 10.0
"""A stage process that ends within this time of being ready has ended early."""
MAX_EARLY_ENDS = 2
"""Early ends in a row after which the stage is not started again until the coordinator orders it."""

Report = Loading | Loaded | NotLoaded | RankListens


@dataclass(frozen=True)
class _Assignment:
    """Assignment of a slot: a stage, or nothing. A later assignment supersedes an earlier one."""

    load: Load | None


@dataclass(frozen=True)
class _Ended:
    """A stage process has ended, by itself or not."""

    child: StageChild


_Order = _Assignment | _Ended | Restart | Retire


class StageSupervisor(threading.Thread):
    """Runs the stage process of one slot, and reports its progress, readiness and end."""

    def __init__(
        self, index: int, settings: StageSettings, report: Callable[[Report], None], memory_bytes: int = 0
    ) -> None:
        """``index`` is the number of the slot; ``report`` is called in the thread of the supervisor.

        ``memory_bytes`` is the memory for the weights of the slot's stage processes: a retired one stays only where it
        suffices for both.
        """
        super().__init__(name=f"stage-slot-{index}", daemon=True)
        self._index = index
        self._settings = settings
        self._report = report
        self._memory_bytes = memory_bytes
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._newest = self._taken = _Assignment(None)
        """The assignment that arrived last, and the one that the thread has taken up; equal if none is waiting."""
        self._closing = threading.Event()
        self._admitted: tuple[str, ...] = ()
        self._loading: Load | None = None
        self._starting: StageChild | None = None
        self._stages = SlotStages()
        self._meeting = RankMeeting()
        self._hanging: StageChild | None = None
        """The stage process that was ended because the coordinator found that it hangs."""

    @property
    def resident_bytes(self) -> int:
        """Memory of the stage processes when they became ready; 0 without one that is ready."""
        return self._stages.resident_bytes

    @property
    def is_loading(self) -> bool:
        """Whether the slot starts a stage process, or is about to."""
        return self._loading is not None or self._superseded

    @property
    def is_busy(self) -> bool:
        """Whether the slot has a stage process, or starts one."""
        return self.is_loading or bool(self._stages.children)

    def assign(self, load: Load | None) -> None:
        """Run the layers of ``load`` from now on, or none for None. Safe from any thread."""
        if load is not None and load == self._loading:
            return
        self._newest = _Assignment(load)
        self._orders.put(self._newest)
        if (starting := self._starting) is not None:
            starting.kill()  # it may hang

    def order(self, order: Restart | Retire) -> None:
        """Follow an order about a stage process, if the slot still has that process. Safe from any thread."""
        self._orders.put(order)

    def tell(self, message: RankAt) -> None:
        """Note where another rank of the slot's stage listens. Safe from any thread."""
        if (loading := self._loading) is not None and loading.group == message.group:
            self._meeting.tell(message)

    def admit(self, keys: Sequence[str]) -> None:
        """Admit exactly these keys to the stage. Safe from any thread."""
        self._admitted = tuple(keys)
        starting = self._starting
        for child in [*([starting] if starting else []), *self._stages.children]:
            child.admit(self._admitted)

    def close(self) -> None:
        """End the stage processes and the thread."""
        self._closing.set()
        self.assign(None)
        self.join()

    def run(self) -> None:
        """Follow the orders until closed."""
        try:
            while not self._closing.is_set():
                try:
                    self._step()
                except Exception as error:
                    log.exception("stage slot %d failed", self._index)
                    running = self._stages.running
                    self._stop_all()
                    if running is not None:
                        self._report_failure(running.load, *_unexpected(error))
        finally:
            self._stop_all()

    @property
    def _superseded(self) -> bool:
        """Whether another assignment waits."""
        return self._newest is not self._taken

    def _step(self) -> None:
        """Follow the next order, or end a retired stage process whose time is over."""
        stages = self._stages
        try:
            order = self._orders.get(timeout=stages.retired_left_s)
        except queue.Empty:
            stages.stop_retired()
            return
        running, retired = stages.running, stages.retired
        match order:
            case _Assignment():
                if order is self._newest:
                    self._taken = order
                    self._apply(order.load)
            case _Ended():
                if running is not None and running.child is order.child:
                    self._on_end(running)
                elif retired is not None and retired.child is order.child:
                    stages.stop_retired()
            case Restart():
                if running is not None and running.child.pid == order.pid:
                    log.warning("the stage process %d hangs, and is started again", order.pid)
                    self._hanging = running.child
                    running.child.kill()  # ``_Ended`` follows
            case Retire():
                if retired is not None and retired.load.plan_id == order.plan_id:
                    stages.stop_retired()

    def _apply(self, load: Load | None) -> None:
        stages = self._stages
        if load is None or self._closing.is_set():
            self._stop_all()
            return
        if stages.retired is not None and stages.retired.runs(load):
            stages.take_back()
        if stages.running is not None and stages.running.runs(load):
            stages.running = replace(stages.running, load=load)
            self._report_loaded(stages.running)
            return
        self._load(load, early_ends=0)

    def _load(self, load: Load, early_ends: int, speed_us: tuple[int, int] | None = None) -> None:
        """Run ``load`` in place of what runs now; report ``Loaded``, or ``NotLoaded`` where it cannot run.

        ``speed_us`` is the speed of a stage process that ran it before: time for measuring would be added to a pause.
        """
        self._loading = load
        try:
            self._start(load, early_ends, speed_us)
        except EdgeppError as error:
            self._stop_starting()
            if not self._superseded:
                self._report_failure(load, sentence(error), sentence(error.hint))
        except Exception as error:
            log.exception("stage slot %d failed", self._index)
            self._stop_starting()
            self._report_failure(load, *_unexpected(error))
        finally:
            self._loading = None

    def _start(self, load: Load, early_ends: int, speed_us: tuple[int, int] | None) -> None:
        stages = self._stages
        stages.retire()
        if stages.retired is not None and (self._settings.listen.port or not stages.retired.passes_to(load)):
            stages.stop_retired()
        parts = ALL_PARTS if load.drafts else ModelParts(layers=LayerRange(load.start, load.stop))
        path = fetch(load.model, parts, self._progress(load, "fetching"))
        if load.head:  # config.json, which says where the head is, has come with the layers
            parts = replace(parts, head=Checkpoint.open(path).head_module)
            path = fetch(load.model, parts, self._progress(load, "fetching"))
        layers = parts.layers or LayerRange(0, Checkpoint.open(path).num_layers)
        if stages.retired is not None and not fits_beside(stages.retired.ready, path, layers, self._memory_bytes):
            stages.stop_retired()

        def configure(rank: RankConfig | None) -> StageConfig:
            kv_bits, admit = load.kv_bits or None, self._admitted
            config = self._settings.config(
                path, load.model, layers, exact=load.exact, kv_bits=kv_bits, admit=admit, rank=rank
            )
            return replace(config, speed_us=speed_us, drafts=load.drafts, head=load.head)

        child, ready = self._start_child(load, configure)
        self._starting = None
        stages.running = SlotStage(load, child, ready, time.monotonic(), early_ends)
        child.admit(self._admitted)  # the keys may have changed meanwhile
        self._report_loaded(stages.running)
        child.on_end(lambda: self._orders.put(_Ended(child)))

    def _start_child(
        self, load: Load, configure: Callable[[RankConfig | None], StageConfig]
    ) -> tuple[StageChild, Ready]:
        """The processes of this machine that run ``load``, and their report: one of many ranks, all ranks, or one."""
        on_progress = self._progress(load, "loading")

        def progress(done: int, total: int) -> None:
            on_progress(done, total, "")

        if load.group:
            rank = StageProcess(configure(RankConfig(load.group, load.rank, load.weights)))
            self._starting = rank
            return rank, self._meeting.join(load, rank, self._report, lambda: self._superseded, progress)
        child = start_stage((1,) if load.drafts else self._settings.ranks, configure)
        self._starting = child
        return child, child.wait_ready(progress)

    def _progress(self, load: Load, activity: str) -> OnFetched:
        return progress_reports(load, activity, self._report, lambda: self._superseded)

    def _report_loaded(self, stage: SlotStage) -> None:
        self._report(stage.report(self._index))

    def _report_failure(self, load: Load, reason: str, hint: str) -> None:
        self._report(NotLoaded(load.plan_id, self._index, reason, hint))

    def _on_end(self, stage: SlotStage) -> None:
        """Report the end of a stage process, and start the stage again unless it keeps ending."""
        early_ends = stage.early_ends + 1 if time.monotonic() - stage.ready_s < EARLY_END_S else 0
        restarting = early_ends < MAX_EARLY_ENDS
        self._stages.running = None
        reason, hint = stage.child.why_ended()
        if stage.child is self._hanging:
            reason, hint = "its stage process hung, and was ended", ""
        elif stage.load.group and isinstance(stage.child, StageProcess):
            lost = self._meeting.lost(stage.child.stop())
            reason, hint = (lost, "") if lost else (reason, hint)
        self._report(NotLoaded(stage.load.plan_id, self._index, reason, hint, restarting))
        if restarting:
            self._load(stage.load, early_ends, (stage.ready.prefill_us, stage.ready.decode_us))

    def _stop_all(self) -> None:
        """End all stage processes of the slot."""
        self._stop_starting()
        self._stages.stop()

    def _stop_starting(self) -> None:
        child, self._starting = self._starting, None
        if child is not None:
            child.stop()


def _unexpected(error: Exception) -> tuple[str, str]:
    """Reason and hint of an error of edgepp itself."""
    return sentence(f"{type(error).__name__}: {error}"), "read the messages of edgepp on that node"
