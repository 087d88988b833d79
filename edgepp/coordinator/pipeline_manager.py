"""The pipeline in force: a thread opens it, closes it, and opens a lost one again, while answers wait for it."""

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
from edgepp.errors import EdgeppError, NotReady, StageLost
from edgepp.events import OnEvent, PipelineLost, PipelineNotOpened, PipelineOpened

log = logging.getLogger("edgepp.coordinator")

FIRST_REOPEN_S = 0.5
"""The wait before a retry after the first failure to open a pipeline; each further failure doubles it."""
MAX_REOPEN_S = 8.0


@dataclass(frozen=True)
class PipelineOrder:
    """The version of a plan, and the endpoints of its stages in order."""

    plan_version: int
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True)
class _Opening:
    """A pipeline to open, with the model that was in force when it was ordered."""

    order: PipelineOrder
    frontend: ModelFrontend
    options: PipelineOptions


class PipelineManager:
    """Keeps one pipeline open at a time, over the stages of the newest plan."""

    def __init__(self, frontend: ModelFrontend, options: PipelineOptions, on_event: OnEvent) -> None:
        self._frontend = frontend
        self._options = options
        self._on_event = on_event
        self._commands: queue.SimpleQueue[_Opening | EdgeppError | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._pipeline: Pipeline | None = None
        self._wanted: PipelineOrder | None = None
        self._num_given = self._num_done = 0
        """The numbers of commands given and of commands carried out; each is counted by one thread."""
        self._failed_s = 0.0
        self._failures = 0
        """Failures in a row to open the wanted pipeline."""
        self._shortage: EdgeppError | None = None
        self.reason = "no plan yet"
        """Why no pipeline is open; empty while one is."""
        self.held = ""
        """Why questions wait although a pipeline is open; empty where they do not."""
        self._thread = threading.Thread(target=self._run, name="pipeline-manager", daemon=True)
        self._thread.start()

    @property
    def model(self) -> str:
        """The name of the model as the user gave it."""
        return self._options.model

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
        return self._failures

    @property
    def sampling(self) -> SamplingOptions:
        """The sampling options that the model's makers recommend."""
        return self._frontend.sampling

    @property
    def pipeline(self) -> Pipeline | None:
        """The open pipeline; None where there is none, or it is lost."""
        pipeline = self._pipeline
        return None if pipeline is None or pipeline.lost is not None else pipeline

    @property
    def alive(self) -> bool:
        """Whether the manager's thread runs."""
        return self._thread.is_alive()

    def ensure_open(self, wanted: PipelineOrder) -> None:
        """Open the ``wanted`` pipeline, unless it is open, being opened, or waiting for a retry.

        The coordinator calls this ten times per second.
        """
        if wanted == self._wanted and (self._busy or time.monotonic() - self._failed_s < self._reopen_wait_s):
            return
        if wanted == self._wanted and self.pipeline is not None:
            return
        if wanted != self._wanted:
            self._failures = 0
        self._wanted = wanted
        self._order(_Opening(wanted, self._frontend, self._options))

    def close_pipeline(self, reason: str, error: EdgeppError) -> None:
        """Close the pipeline. Answers under way end with ``error``; waiting ones show ``reason``."""
        self.reason = reason
        if self._wanted is not None:
            self._wanted = None
            self._order(error)

    def change_model(self, frontend: ModelFrontend, options: PipelineOptions, reason: str, error: EdgeppError) -> None:
        """Close the pipeline as ``close_pipeline`` does, and open further ones with another model."""
        self.close_pipeline(reason, error)
        self._frontend, self._options, self._failures = frontend, options, 0

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
        self._commands.put(None)
        self._thread.join()

    @property
    def _busy(self) -> bool:
        return self._num_done != self._num_given

    @property
    def _reopen_wait_s(self) -> float:
        return min(MAX_REOPEN_S, FIRST_REOPEN_S * 2.0 ** min(self._failures - 1, 32)) if self._failures else 0.0

    def _order(self, command: _Opening | EdgeppError) -> None:
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
                self._close_current(commands[0])
                if commands[-1] is None:
                    return
                if isinstance(commands[-1], _Opening):
                    self._open(commands[-1])
            except Exception as error:
                log.exception("the pipeline could not be closed or opened")
                self._note_failure(f"{type(error).__name__}: {error}")
            self._num_done = taken

    def _close_current(self, command: _Opening | EdgeppError | None) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        if pipeline.lost is not None:
            self._on_event(PipelineLost(str(pipeline.lost)))
        pipeline.engine.close(_closing_reason(pipeline, command))
        pipeline.close()

    def _open(self, opening: _Opening) -> None:
        began_s, wanted = time.monotonic(), opening.order
        try:
            pipeline = Pipeline(replace(opening.options, endpoints=wanted.endpoints), frontend=opening.frontend)
        except Exception as error:
            if not isinstance(error, EdgeppError):
                log.exception("plan %d cannot be opened", wanted.plan_version)
            if wanted == self._wanted:
                self._note_failure(str(error) if isinstance(error, EdgeppError) else f"{type(error).__name__}: {error}")
                if self._failures == 1:
                    self._on_event(PipelineNotOpened(wanted.plan_version, self.reason))
            return
        if wanted != self._wanted:  # another plan came meanwhile
            pipeline.close()
            return
        with self._changed:
            self._pipeline, self._failures, self.reason = pipeline, 0, ""
            self._changed.notify_all()
        self._on_event(PipelineOpened(wanted.plan_version, time.monotonic() - began_s))

    def _note_failure(self, reason: str) -> None:
        self.reason = reason
        self._failures += 1
        self._failed_s = time.monotonic()


def _closing_reason(pipeline: Pipeline, command: _Opening | EdgeppError | None) -> EdgeppError:
    """The error with which answers end when ``command`` closes ``pipeline``."""
    if isinstance(command, EdgeppError):
        return command
    if command is None:
        return EdgeppError("the coordinator was closed during this answer", "start `edgepp serve` again")
    for stage, old, new in zip(pipeline.stages, pipeline.options.endpoints, command.order.endpoints, strict=False):
        if old != new:
            return StageLost(f"{stage} is gone: it is at {new.addresses[0]} now", "ask again")
    return NotReady("the pipeline was opened again during this answer", "ask again")
