"""Changes of the model while the cluster runs: one at a time, in a thread of its own.

    opening ► fetching ► waiting ► loading ► ready
                                         └──► failed: the former model is loaded again

A model that is here already is not fetched. The model that runs already is ready at once.

Nothing changes for anybody until the new model's own part is here and the nodes have room for it. Then new questions
wait, answers under way end (for ``DRAIN_S`` seconds at most), and the nodes get a plan for the new model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from edgepp.cluster.membership import Membership
from edgepp.coordinator.live_answers import LiveAnswers
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.planner import Planner
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError, NotReady, UsageError
from edgepp.events import ModelChanged, ModelNotChanged, OnEvent
from edgepp.model.catalogue.source import HubRepository, resolve
from edgepp.placement.values import PlacementRequest

DRAIN_S = 60.0
"""How long a change waits for answers under way."""
_LOOK_S = 0.1
_CLOSE_S = 2.0
"""How long closing waits for a change, which may wait for a server of the hub."""

T = TypeVar("T")


@dataclass(frozen=True)
class CoordinatorModel:
    """The coordinator's own parts of one model."""

    frontend: ModelFrontend
    name: str
    """The name by which every node finds the same files."""
    request: PlacementRequest
    options: PipelineOptions


MakeParts = Callable[[ModelFrontend], CoordinatorModel]


@dataclass(frozen=True)
class ModelChange:
    """State of a change of the model."""

    model: str
    state: Literal["opening", "fetching", "waiting", "loading", "ready", "failed"] = "opening"
    progress: float = 0.0
    """The fetched part of what the coordinator needs of the model."""
    error: EdgeppError | None = None

    @property
    def under_way(self) -> bool:
        """Whether the change has not ended."""
        return self.state not in ("ready", "failed")

    def to_json(self) -> dict[str, Any]:
        """The change in the cluster's state."""
        error = self.error
        return {
            "model": self.model,
            "state": self.state,
            "progress": round(self.progress, 3),
            "reason": str(error) if error else "",
            "hint": error.hint if error else "",
        }


class ModelChanger:
    """Changes the model of one coordinator."""

    def __init__(
        self,
        planner: Planner,
        members: Membership,
        pipeline_manager: PipelineManager,
        live_answers: LiveAnswers,
        on_event: OnEvent,
        in_thread: Callable[[Callable[[], None]], None],
        make_parts: MakeParts,
    ) -> None:
        """``in_thread`` does work in the coordinator's thread and returns when it is done."""
        self._planner = planner
        self._members = members
        self._pipeline_manager = pipeline_manager
        self._live_answers = live_answers
        self._on_event = on_event
        self._in_thread = in_thread
        self._make_parts = make_parts
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.change: ModelChange | None = None
        """The last change, under way or ended; None where there was none."""

    def begin(self, model: str) -> bool:
        """Begin to change the model; ``change`` says how far it is. False if the model runs already.

        Raises:
            UsageError: another change is under way.
        """
        with self._lock:
            if self.change is not None and self.change.under_way:
                raise UsageError(f"the cluster is changing its model to {self.change.model}", "wait until it has")
            if self._runs(model):
                self.change = ModelChange(model, "ready", 1.0)
                return False
            self.change = ModelChange(model)
            self._thread = threading.Thread(target=self._run, args=(model,), name="model-change", daemon=True)
            self._thread.start()
            return True

    def close(self) -> None:
        """Give up a change that is under way."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def _runs(self, model: str) -> bool:
        """Whether the cluster is known to run ``model``; a model of the hub may have been fetched again since."""
        return model == self._pipeline_manager.options.model and not isinstance(resolve(model), HubRepository)

    def _run(self, model: str) -> None:
        try:
            self._change(model)
        except BaseException as error:  # noqa: BLE001 - outermost level of the thread
            failure = error if isinstance(error, EdgeppError) else explained(error)
            self._note(state="failed", error=failure)
            self._on_event(ModelNotChanged(model, str(failure)))
        else:
            self._note(state="ready", progress=1.0)
            self._on_event(ModelChanged(model))

    def _change(self, model: str) -> None:
        """Change the model.

        Raises:
            EdgeppError: the model cannot be had, or the nodes cannot load it; the former one is in force.
        """
        parts = self._make_parts(ModelFrontend.open(model, whole=False, on_progress=self._fetched))
        before = self._in_force()
        if parts.name == before.name:
            parts.frontend.tokenizer.close()
            return
        try:
            self._in_thread(lambda: self._planner.check(parts.request, self._members))
            self._pipeline_manager.hold(f"the cluster is changing its model to {model}")
            try:
                self._await_answers()
                self._in_thread(lambda: self._put_in_force(parts, model))
            finally:
                self._pipeline_manager.release()
            failure = self._failure_to_load(parts.frontend)
            if failure is not None:
                self._in_thread(lambda: self._put_in_force(before, before.frontend.model))
                raise EdgeppError(
                    f"{model} was not loaded, and the cluster goes on with {before.frontend.model}: {failure}",
                    failure.hint,
                )
        except BaseException:
            parts.frontend.tokenizer.close()
            raise
        before.frontend.tokenizer.close()

    def _in_force(self) -> CoordinatorModel:
        manager, planner = self._pipeline_manager, self._planner
        return CoordinatorModel(manager.frontend, planner.model, planner.request, manager.options)

    def _put_in_force(self, parts: CoordinatorModel, model: str) -> None:
        """Give the planner and the pipelines another model. Called in the coordinator's thread."""
        ended = NotReady(f"the cluster changed its model to {model} during this answer", "ask again")
        self._pipeline_manager.change_model(parts.frontend, parts.options, f"{model} is being loaded", ended)
        self._planner.change_model(parts.name, parts.request)

    def _await_answers(self) -> None:
        """Wait until all answers under way have ended, but those that wait for a pipeline."""
        self._note(state="waiting", progress=1.0)
        until_s = time.monotonic() + DRAIN_S
        while self._live_answers.num_running and time.monotonic() < until_s and not self._closed.wait(_LOOK_S):
            continue

    def _failure_to_load(self, frontend: ModelFrontend) -> EdgeppError | None:
        """Wait for a pipeline of the new model; what went wrong if there will be none, as far as is known."""
        self._note(state="loading")
        manager, planner = self._pipeline_manager, self._planner
        while not self._closed.wait(_LOOK_S):
            pipeline = manager.pipeline
            if pipeline is not None and pipeline.frontend is frontend:
                return None
            if (shortage := planner.certain_shortage(self._members)) is not None:
                return shortage
            if planner.loads.last_failure:
                return EdgeppError(planner.loads.last_failure, "see `edgepp status`")
            if manager.num_failures:
                return EdgeppError(manager.reason)
        return EdgeppError("the coordinator was closed")

    def _fetched(self, done: int, total: int, _: str) -> None:
        if self._closed.is_set():
            raise EdgeppError("the coordinator was closed")
        self._note(state="fetching", progress=done / total if total else 0.0)

    def _note(self, **changes: Any) -> None:
        if self.change is not None:
            self.change = replace(self.change, **changes)
