"""The pipeline in force: opened, lost, closed and opened again in a thread of its own, while askers wait their turn."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgepp.backend.device import release_thread
from edgepp.engine.front import Front
from edgepp.engine.peers import Endpoint
from edgepp.engine.pipeline import Pipeline, PipelineOptions
from edgepp.engine.request import SamplingOptions
from edgepp.errors import EdgeppError

log = logging.getLogger("edgepp.serve")

AGAIN_S = 0.5
"""How long after a failure a pipeline is tried again."""


@dataclass(frozen=True)
class Wanted:
    """A plan's number and its stages, in order."""

    plan: int
    endpoints: tuple[Endpoint, ...]


class Serving:
    """One pipeline at a time, of the newest plan."""

    def __init__(self, front: Front, options: PipelineOptions, on_event: Callable[[str], None]) -> None:
        self._front = front
        self._options = options
        self._on_event = on_event
        self._commands: queue.SimpleQueue[Wanted | str | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._pipeline: Pipeline | None = None
        self._wanted: Wanted | None = None
        self._ordered = self._done = 0
        """Commands so far, and those that were carried out: one thread counts each."""
        self._failed_s = 0.0
        self.reason = "no plan yet"
        """Why there is no pipeline now."""
        self._thread = threading.Thread(target=self._run, name="serving", daemon=True)
        self._thread.start()

    @property
    def model(self) -> str:
        """The name of the model, as it was asked for."""
        return self._options.model

    @property
    def sampling(self) -> SamplingOptions:
        """How the model's makers want its tokens drawn."""
        return self._front.sampling

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline that answers now."""
        pipeline = self._pipeline
        return None if pipeline is None or pipeline.lost is not None else pipeline

    def keep(self, wanted: Wanted) -> None:
        """See to it that ``wanted`` is open: called again and again, it does something only when that is not so."""
        if wanted == self._wanted and (self._busy or time.monotonic() - self._failed_s < AGAIN_S):
            return
        if wanted == self._wanted and self.pipeline is not None:
            return
        self._wanted = wanted
        self._order(wanted)

    def shut(self, reason: str) -> None:
        """Close the pipeline; whoever is being answered is told that the plan changed."""
        self.reason = reason
        if self._wanted is not None:
            self._wanted = None
            self._order(reason)

    def acquire(self, wait_s: float, given_up: Callable[[], bool]) -> Pipeline:
        """The pipeline, once there is one.

        Raises:
            EdgeppError: there is none for ``wait_s`` seconds, or until ``given_up``.
        """
        until_s = time.monotonic() + wait_s
        with self._changed:
            while (pipeline := self.pipeline) is None:
                if time.monotonic() >= until_s or given_up():
                    raise EdgeppError(f"the cluster cannot answer yet: {self.reason}", "see `edgepp status`")
                self._changed.wait(1.0)
            return pipeline

    def close(self) -> None:
        """Close the pipeline and end the thread."""
        self._commands.put(None)
        self._thread.join()

    @property
    def _busy(self) -> bool:
        return self._done != self._ordered

    def _order(self, command: Wanted | str) -> None:
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
            command = self._commands.get()
            taken += 1
            while not self._commands.empty():
                command = self._commands.get()
                taken += 1
            self._drop()
            if command is None:
                return
            if isinstance(command, Wanted):
                self._open(command)
            self._done = taken

    def _drop(self) -> None:
        if self._pipeline is not None:
            if self._pipeline.lost is not None:
                self._on_event(f"interrupted: {self._pipeline.lost}")
            self._pipeline.engine.close(EdgeppError("the cluster changed while this was answered", "ask again"))
            self._pipeline.close()
            self._pipeline = None

    def _open(self, wanted: Wanted) -> None:
        began_s = time.monotonic()
        try:
            pipeline = Pipeline(replace(self._options, endpoints=wanted.endpoints), front=self._front)
        except EdgeppError as error:
            if wanted != self._wanted:
                return
            self.reason = str(error)
            self._failed_s = time.monotonic()
            self._on_event(f"plan {wanted.plan} cannot be opened: {error}")
            return
        except Exception as error:
            log.exception("plan %d cannot be opened", wanted.plan)
            self.reason = f"{type(error).__name__}: {error}"
            self._failed_s = time.monotonic()
            return
        if wanted != self._wanted:  # another plan came meanwhile
            pipeline.close()
            return
        with self._changed:
            self._pipeline, self.reason = pipeline, ""
            self._changed.notify_all()
        self._on_event(f"plan {wanted.plan} is open after {time.monotonic() - began_s:.1f} s: ready to answer")
