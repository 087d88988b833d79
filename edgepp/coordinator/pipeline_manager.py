"""The pipeline in force: a thread opens it, and moves it to other stages when the plan changes or a stage is lost.

The pipeline of a model outlives its stages: its requests pause meanwhile, and new ones wait in ``acquire``.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from edgepp.backend.device import release_thread
from edgepp.coordinator.pipeline_order import Opening, PipelineOrder
from edgepp.coordinator.reopening import Reopening
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.stage_handshake import Endpoint, StageUnreached
from edgepp.errors import EdgeppError, NotReady, StageError
from edgepp.events import OnEvent, PipelineLost, PipelineNotOpened, PipelineOpened

log = logging.getLogger("edgepp.coordinator")


class PipelineManager:
    """Keeps one pipeline open at a time, over the stages of the newest plan."""

    def __init__(self, frontend: ModelFrontend, options: PipelineOptions, on_event: OnEvent) -> None:
        self._frontend = frontend
        self._options = options
        self._on_event = on_event
        self._commands: queue.SimpleQueue[Opening | EdgeppError] = queue.SimpleQueue()
        self._closing = False
        self._changed = threading.Condition()
        self._pipeline: Pipeline | None = None
        self._wanted: PipelineOrder | None = None
        self._num_given = self._num_done = 0
        """The numbers of commands given and of commands carried out; each is counted by one thread."""
        self._in_force: PipelineOrder | None = None
        self._reported: EdgeppError | None = None
        """The loss of which an event was made, until the pipeline is open again."""
        self._reopening = Reopening()
        self._shortage: EdgeppError | None = None
        self._reason = "no plan yet"
        self.held = ""
        """Why questions wait although a pipeline is open; empty where they do not."""
        self._thread = threading.Thread(target=self._run, name="pipeline-manager", daemon=True)
        self._thread.start()

    @property
    def frontend(self) -> ModelFrontend:
        """The coordinator's own part of the model."""
        return self._frontend

    @property
    def options(self) -> PipelineOptions:
        """The options of pipelines, without endpoints."""
        return self._options

    @property
    def num_failures(self) -> int:
        """Failures in a row to open the wanted pipeline."""
        return self._reopening.num_failures

    @property
    def unreachable(self) -> StageUnreached | None:
        """Which stage of the wanted pipeline is not reached, try after try, and from where; else None."""
        return self._reopening.unreachable

    @property
    def reason(self) -> str:
        """Why no pipeline is open; empty while one is."""
        suspended = self._pipeline.suspended if self._pipeline is not None else None
        return self._reason or (str(suspended) if suspended is not None else "")

    @property
    def pipeline(self) -> Pipeline | None:
        """The open pipeline; None where there is none, or it is lost or suspended."""
        pipeline = self.latest
        return None if pipeline is None or pipeline.suspended is not None else pipeline

    @property
    def latest(self) -> Pipeline | None:
        """The pipeline of the model that is open or suspended; None where there is none, or its engine has failed."""
        pipeline = self._pipeline
        usable = pipeline is not None and pipeline.frontend is self._frontend and pipeline.lost is None
        return pipeline if usable else None

    def runs_over(self, plan_version: int) -> bool:
        """Whether a pipeline is open over the stages of this version of the plan, or none is open or suspended."""
        if self.latest is None:
            return True
        in_force = self._in_force
        return self.pipeline is not None and in_force is not None and in_force.plan_version == plan_version

    @property
    def alive(self) -> bool:
        """Whether the manager's thread runs."""
        return self._thread.is_alive()

    def ensure_open(self, wanted: PipelineOrder) -> None:
        """Open the ``wanted`` pipeline, unless it is open, being opened, or waiting for a retry.

        The coordinator calls this ten times per second.
        """
        if wanted == self._wanted and (self._busy or self._reopening.waits or self.pipeline is not None):
            return
        if wanted != self._wanted:
            self._reopening.forget()
        self._wanted = wanted
        self._order(Opening(wanted, self._frontend, self._options))

    def use_drafter(self, endpoint: Endpoint | None) -> None:
        """Let the process at ``endpoint`` guess for the pipeline's requests, or for None one of this machine or none.

        The coordinator calls this ten times per second.
        """
        pipeline = self.latest
        if pipeline is None or pipeline.drafts is None:
            return
        if pipeline.drafts.wanted != endpoint:
            pipeline.drafts.use(endpoint)

    def suspend(self, reason: str, error: EdgeppError) -> None:
        """Pause all answers, since a stage is lost, until ``ensure_open``; waiting questions show ``reason``."""
        self._reason, self._wanted = reason, None
        if self._pipeline is not None:
            self._pipeline.suspend(error, lost=True)

    def explain(self, reason: str, error: EdgeppError | None = None) -> None:
        """Let waiting questions show another ``reason``, while no pipeline is open; pausing answers end with ``error``.

        Without ``error`` these end with the loss that made them pause, if no pipeline is open in time.
        """
        self._reason = reason
        pipeline = None if self._busy else self._pipeline  # one that is being moved may go on at any moment
        if error is not None and pipeline is not None and pipeline.suspended not in (None, error):
            pipeline.suspend(error, lost=True)

    def report_loss(self) -> None:
        """Make an event of the loss of a stage, once per loss. Call this before ``ensure_open``."""
        loss = self._pipeline.suspended if self._pipeline is not None else None
        if isinstance(loss, StageError) and self._reported is None:
            self._reported = loss
            self._on_event(PipelineLost(str(loss)))

    def end_answers(self, error: EdgeppError) -> None:
        """End the answers that pause, since the nodes that are left cannot hold the model."""
        if self._pipeline is not None:
            self._pipeline.engine.end_requests(error)

    def change_model(self, frontend: ModelFrontend, options: PipelineOptions, reason: str, error: EdgeppError) -> None:
        """Close the pipeline, and open further ones with another model. Answers under way end with ``error``."""
        self._reason = reason
        if self._wanted is not None:
            self._wanted = None
            self._order(error)
        self._frontend, self._options = frontend, options
        self._reopening.forget()

    def hold(self, reason: str) -> None:
        """Let further questions wait, although a pipeline may be open, until ``release``."""
        self.held = reason

    def release(self) -> None:
        """Let questions be answered again."""
        self.held = ""
        self.wake()

    def set_shortage(self, error: EdgeppError | None) -> None:
        """Set why no pipeline is possible at all, so that answers do not wait for one; None where one is possible."""
        if error is not self._shortage:
            with self._changed:
                self._shortage = error
                self._changed.notify_all()
        if error is not None:
            self.end_answers(error)

    def acquire(self, wait_s: float, given_up: Callable[[], bool]) -> Pipeline:
        """Wait for an open pipeline and return it.

        Raises:
            NotReady: no pipeline is open within ``wait_s`` seconds, ``given_up`` is true (call ``wake`` after a
                change), or no pipeline is possible.
        """
        until_s = time.monotonic() + wait_s
        with self._changed:
            while (pipeline := None if self.held else self.pipeline) is None:
                if self._shortage is not None:
                    raise NotReady(f"the cluster cannot answer: {self._shortage}", self._shortage.hint)
                if time.monotonic() >= until_s or given_up():
                    raise NotReady(f"the cluster cannot answer yet: {self.held or self.reason}", "see `edgepp status`")
                self._changed.wait(1.0)
            return pipeline

    def wake(self) -> None:
        """Let the callers of ``acquire`` look at their ``given_up`` again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Close the pipeline and end the thread."""
        self._closing = True
        self._commands.put(NotReady("the coordinator was closed during this answer", "start `edgepp serve` again"))
        self._thread.join()

    @property
    def _busy(self) -> bool:
        return self._num_done != self._num_given

    def _order(self, command: Opening | EdgeppError) -> None:
        self._num_given += 1
        self._commands.put(command)

    def _run(self) -> None:
        try:
            self._carry_out()
        finally:
            release_thread()

    def _carry_out(self) -> None:
        taken = 0
        while True:
            commands = [self._commands.get()]
            while not self._commands.empty():
                commands.append(self._commands.get())
            taken += len(commands)
            try:
                for ending in commands:
                    if isinstance(ending, EdgeppError):
                        self._close_current(ending)
                if self._closing:
                    return
                if isinstance(commands[-1], Opening):
                    self._bring_up(commands[-1])
            except Exception as error:
                log.exception("the pipeline could not be closed or opened")
                self._note_failure(f"{type(error).__name__}: {error}")
            self._num_done = taken

    def _close_current(self, reason: EdgeppError) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.engine.close(reason)
            pipeline.close()

    def _bring_up(self, opening: Opening) -> None:
        """Move the pipeline to the stages of ``opening``, or open one if there is none."""
        began_s, wanted, former = time.monotonic(), opening.order, self._pipeline
        if former is not None and former.lost is not None:
            self._on_event(PipelineLost(str(former.lost)))
            self._close_current(former.lost)
        try:
            if self._pipeline is None:
                self._open(opening)
            else:
                self._move(self._pipeline, wanted)
        except Exception as error:
            if not isinstance(error, EdgeppError):
                log.exception("plan %d cannot be opened", wanted.plan_version)
            if wanted == self._wanted:
                reason = str(error) if isinstance(error, EdgeppError) else f"{type(error).__name__}: {error}"
                self._note_failure(reason, error if isinstance(error, StageUnreached) else None)
                if self._reopening.num_failures == 1:
                    self._on_event(PipelineNotOpened(wanted.plan_version, self.reason))
            return
        if wanted == self._wanted:
            with self._changed:
                self._reason, self._in_force, self._reported = "", wanted, None
                self._reopening.forget()
                self._changed.notify_all()
            self._on_event(PipelineOpened(wanted.plan_version, time.monotonic() - began_s))

    def _open(self, opening: Opening) -> None:
        options = replace(opening.options, endpoints=opening.order.endpoints)
        pipeline = Pipeline(options, frontend=opening.frontend, recovers=True)
        if opening.order == self._wanted:
            self._pipeline = pipeline
        else:  # another plan came meanwhile
            pipeline.close()

    def _move(self, pipeline: Pipeline, wanted: PipelineOrder) -> None:
        pipeline.suspend(NotReady("the layers move to other stages"), lost=False).result()
        ring = pipeline.open_ring(wanted.endpoints, lambda: wanted != self._wanted)
        newest = self._wanted
        if newest is not None and newest.plan_version == wanted.plan_version:
            pipeline.take_ring(ring)  # also where addresses have changed since: its stages hold the sequences now
        else:  # another plan came meanwhile
            ring.close()

    def _note_failure(self, reason: str, unreached: StageUnreached | None = None) -> None:
        self._reason = reason
        self._reopening.failed(unreached)
