"""The pipeline in force: opened, lost, closed and opened again in a thread of its own, while askers wait their turn."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgepp.backend.device import release_thread
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.pipeline import Pipeline, PipelineOptions
from edgepp.engine.request import SamplingOptions
from edgepp.engine.stage_handshake import Endpoint
from edgepp.errors import EdgeppError, StageLost
from edgepp.events import OnEvent, PipelineLost, PipelineNotOpened, PipelineOpened

log = logging.getLogger("edgepp.coordinator")

FIRST_REOPEN_S = 0.5
"""How long after a failure a pipeline is tried again; each further failure of the same one doubles it."""
MAX_REOPEN_S = 8.0


@dataclass(frozen=True)
class PipelineOrder:
    """A plan's number and its stages, in order."""

    plan: int
    endpoints: tuple[Endpoint, ...]


class PipelineManager:
    """One pipeline at a time, of the newest plan."""

    def __init__(self, frontend: ModelFrontend, options: PipelineOptions, on_event: OnEvent) -> None:
        self._frontend = frontend
        self._options = options
        self._on_event = on_event
        self._commands: queue.SimpleQueue[PipelineOrder | EdgeppError | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._pipeline: Pipeline | None = None
        self._wanted: PipelineOrder | None = None
        self._ordered = self._done = 0
        """Commands so far, and those that were carried out: one thread counts each."""
        self._failed_s = 0.0
        self._failures = 0
        """Failures in a row to open what is wanted."""
        self._shortage: EdgeppError | None = None
        self.reason = "no plan yet"
        """Why there is no pipeline now."""
        self._thread = threading.Thread(target=self._run, name="pipeline-manager", daemon=True)
        self._thread.start()

    @property
    def model(self) -> str:
        """The name of the model, as it was asked for."""
        return self._options.model

    @property
    def sampling(self) -> SamplingOptions:
        """How the model's makers want its tokens drawn."""
        return self._frontend.sampling

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline that answers now."""
        pipeline = self._pipeline
        return None if pipeline is None or pipeline.lost is not None else pipeline

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def ensure_open(self, wanted: PipelineOrder) -> None:
        """See to it that ``wanted`` is open: called again and again, it does something only when that is not so."""
        if wanted == self._wanted and (self._busy or time.monotonic() - self._failed_s < self._reopen_wait_s):
            return
        if wanted == self._wanted and self.pipeline is not None:
            return
        if wanted != self._wanted:
            self._failures = 0
        self._wanted = wanted
        self._order(wanted)

    def close_pipeline(self, reason: str, error: EdgeppError) -> None:
        """Close the pipeline: ``reason`` is told to who waits for the next one, ``error`` to who is being answered."""
        self.reason = reason
        if self._wanted is not None:
            self._wanted = None
            self._order(error)

    def set_shortage(self, error: EdgeppError | None) -> None:
        """Note what is missing for there to be a pipeline at all: nobody needs to wait for one then."""
        if error is not self._shortage:
            with self._changed:
                self._shortage = error
                self._changed.notify_all()

    def acquire(self, wait_s: float, given_up: Callable[[], bool]) -> Pipeline:
        """The pipeline, once there is one.

        Raises:
            EdgeppError: there is none for ``wait_s`` seconds, or until ``given_up`` (see ``wake``), or there cannot be.
        """
        until_s = time.monotonic() + wait_s
        with self._changed:
            while (pipeline := self.pipeline) is None:
                if self._shortage is not None:
                    raise EdgeppError(f"the cluster cannot answer: {self._shortage}", self._shortage.hint)
                if time.monotonic() >= until_s or given_up():
                    raise EdgeppError(f"the cluster cannot answer yet: {self.reason}", "see `edgepp status`")
                self._changed.wait(1.0)
            return pipeline

    def wake(self) -> None:
        """Let those who wait see whether they have given up."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Close the pipeline and end the thread."""
        self._commands.put(None)
        self._thread.join()

    @property
    def _busy(self) -> bool:
        return self._done != self._ordered

    @property
    def _reopen_wait_s(self) -> float:
        return min(MAX_REOPEN_S, FIRST_REOPEN_S * 2.0 ** min(self._failures - 1, 32)) if self._failures else 0.0

    def _order(self, command: PipelineOrder | EdgeppError) -> None:
        self._ordered += 1
        self._commands.put(command)

    def _run(self) -> None:
        try:
            self._obey()
        finally:
            release_thread()

    def _obey(self) -> None:
        taken = 0
        while True:
            commands = [self._commands.get()]
            while not self._commands.empty():
                commands.append(self._commands.get())
            taken += len(commands)
            try:
                self._drop(commands[0])
                if commands[-1] is None:
                    return
                if isinstance(commands[-1], PipelineOrder):
                    self._open(commands[-1])
            except Exception as error:
                log.exception("the pipeline could not be closed or opened")
                self._note_failure(f"{type(error).__name__}: {error}")
            self._done = taken

    def _drop(self, because: PipelineOrder | EdgeppError | None) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        if pipeline.lost is not None:
            self._on_event(PipelineLost(str(pipeline.lost)))
        pipeline.engine.close(_reason(pipeline, because))
        pipeline.close()

    def _open(self, wanted: PipelineOrder) -> None:
        began_s = time.monotonic()
        try:
            pipeline = Pipeline(replace(self._options, endpoints=wanted.endpoints), frontend=self._frontend)
        except Exception as error:
            if not isinstance(error, EdgeppError):
                log.exception("plan %d cannot be opened", wanted.plan)
            if wanted == self._wanted:
                self._note_failure(str(error) if isinstance(error, EdgeppError) else f"{type(error).__name__}: {error}")
                if self._failures == 1:
                    self._on_event(PipelineNotOpened(wanted.plan, self.reason))
            return
        if wanted != self._wanted:  # another plan came meanwhile
            pipeline.close()
            return
        with self._changed:
            self._pipeline, self._failures, self.reason = pipeline, 0, ""
            self._changed.notify_all()
        self._on_event(PipelineOpened(wanted.plan, time.monotonic() - began_s))

    def _note_failure(self, reason: str) -> None:
        self.reason = reason
        self._failures += 1
        self._failed_s = time.monotonic()


def _reason(pipeline: Pipeline, because: PipelineOrder | EdgeppError | None) -> EdgeppError:
    """What those are told whose answers end when ``pipeline`` is closed."""
    if isinstance(because, EdgeppError):
        return because
    if because is None:
        return EdgeppError("the coordinator was closed while this was answered", "start `edgepp serve` again")
    for stage, old, new in zip(pipeline.stages, pipeline.options.endpoints, because.endpoints, strict=False):
        if old != new:
            return StageLost(f"{stage} is gone: it is at {new.addresses[0]} now", "ask again")
    return EdgeppError("the pipeline was opened anew while this was answered", "ask again")
