"""The real engine over stages in this process: fast enough to try every split."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from edgepp import backend
from edgepp.backend.base import BackendOptions
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import GenerateOptions
from edgepp.engine.ring import LocalRing
from edgepp.engine.speculation import Draft
from edgepp.errors import EdgeppError
from edgepp.layers import LayerRange
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.stage_process.model_runner import Frame, ModelRunner, StepOutcome
from tests.builders.stages import stage_info
from tests.waiting import PATIENCE_S


def every_split(num_layers: int) -> Iterator[tuple[LayerRange, ...]]:
    """Each way to cut ``num_layers`` layers into consecutive stages."""
    for stages in range(1, num_layers + 1):
        for cuts in combinations(range(1, num_layers), stages - 1):
            edges = (0, *cuts, num_layers)
            yield tuple(LayerRange(a, b) for a, b in pairwise(edges))


def local_engine(
    path: Path,
    split: Sequence[LayerRange],
    backends: Sequence[str],
    *,
    exact: bool = True,
    budget: int | None = None,
    draft: Callable[[], Draft] | None = None,
) -> EngineLoop:
    """An engine whose stages are ``split``, computed by ``backends`` in turn; the first one has the two ends."""

    def open_parts() -> EngineParts:
        checkpoint = Checkpoint.open(path)
        options = BackendOptions(threads=1, exact=exact)
        stages = []
        for index, layers in enumerate(split):
            chosen = backend.choose(backends[index % len(backends)], checkpoint)
            model = chosen.load_stage(checkpoint, layers, options)
            info = stage_info(
                index=index, layers=layers, backend=chosen.name, device=model.device, chunk=model.chunk,
                context=checkpoint.context, rewinds=model.rewinds,
            )  # fmt: skip
            stages.append((info, model))
        return EngineParts(
            LocalRing(stages),
            backend.choose(backends[0], checkpoint).load_embedding_and_head(checkpoint, options),
            draft,
        )

    return EngineLoop(open_parts, eos=frozenset(), budget=budget)


class Brake:
    """Holds the engines of this process after a number of steps, until it is released or a request is cancelled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._steps: int | None = None
        self._released = threading.Event()
        run, cancel = ModelRunner.run, EngineLoop.cancel

        def held_run(worker: ModelRunner, frame: Frame, hidden: Array) -> StepOutcome:
            if self._steps is not None:
                self._steps -= 1
                assert self._steps >= 0 or self._released.wait(PATIENCE_S), "nobody released it"
            return run(worker, frame, hidden)

        def releasing_cancel(engine: EngineLoop, request: EngineRequest) -> None:
            cancel(engine, request)
            self.release()

        monkeypatch.setattr(ModelRunner, "run", held_run)
        monkeypatch.setattr(EngineLoop, "cancel", releasing_cancel)

    def after(self, steps: int) -> None:
        """Let so many steps pass from now on."""
        self._released.clear()
        self._steps = steps

    def release(self) -> None:
        """Let all steps pass."""
        self._steps = None
        self._released.set()


def collect(request: EngineRequest) -> list[int]:
    """A request's tokens, once it has ended; its error is raised."""
    tokens: list[int] = []
    while True:
        match request.events.get(timeout=PATIENCE_S):
            case int() as token:
                tokens.append(token)
            case EdgeppError() as error:
                raise error
            case _:
                return tokens


def greedy_tokens(engine: EngineLoop, prompt: Sequence[int], n: int) -> list[int]:
    """``n`` greedy tokens after ``prompt``."""
    return collect(engine.submit(prompt, GenerateOptions(max_tokens=n)))
