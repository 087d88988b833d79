"""The real engine over stages in this process: fast enough to try every split."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from edgepp import backend
from edgepp.backend.base import BackendOptions, StageModel
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.local_ring import LocalRing
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import GenerateOptions
from edgepp.engine.ring import RingEvent, Send, SendBatch, StageInfo
from edgepp.engine.speculation import Draft
from edgepp.engine.step_runner import StepRunner
from edgepp.errors import EdgeppError
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint
from tests.builders.stages import stage_info
from tests.live_ranks import stage_model
from tests.waiting import PATIENCE_S


def every_split(num_layers: int) -> Iterator[tuple[LayerRange, ...]]:
    """Each way to cut ``num_layers`` layers into consecutive stages."""
    for stages in range(1, num_layers + 1):
        for cuts in combinations(range(1, num_layers), stages - 1):
            edges = (0, *cuts, num_layers)
            yield tuple(LayerRange(a, b) for a, b in pairwise(edges))


class Panic(BaseException):
    """Like an error of a Rust library: not an ``Exception``."""


class LateRing(LocalRing):
    """Computes like ``LocalRing``, but brings one result at a time, once the engine has nothing more to send."""

    overlaps = True

    def __init__(self, stages: Sequence[tuple[StageInfo, StageModel]]) -> None:
        super().__init__(stages)
        self._late: deque[tuple[Send | SendBatch, RingEvent]] = deque()

    def send(self, step: Send | SendBatch) -> None:
        starts = dict(spans(step))
        self._late = deque(one for one in self._late if not is_void(one[0], starts))
        super().send(step)
        self._late += [(step, event) for event in self._events]
        self._events.clear()

    def poll(self, timeout_s: float) -> list[RingEvent]:
        if not timeout_s:
            return []
        return [self._late.popleft()[1]] if self._late else super().poll(timeout_s)


def is_void(earlier: Send | SendBatch, starts: Mapping[int, int]) -> bool:
    """Whether a later step that begins each sequence at ``starts`` makes an ``earlier`` step of one sequence void."""
    return isinstance(earlier, Send) and starts.get(earlier.sequence, 1 << 62) <= earlier.position


def spans(step: Send | SendBatch) -> list[tuple[int, int]]:
    """Sequence and first position of each part of a step."""
    if isinstance(step, Send):
        return [(step.sequence, step.position)]
    return list(zip(step.sequences, step.positions, strict=True))


def local_engine(
    path: Path,
    split: Sequence[LayerRange],
    backends: Sequence[str],
    *,
    exact: bool = True,
    budget: int | None = None,
    draft: Callable[[str], Draft] | None = None,
    together: bool = False,
    ring: type[LocalRing] = LocalRing,
    beside: bool = False,
    ranks: tuple[int, ...] = (1,),
) -> EngineLoop:
    """An engine whose stages are ``split``, computed by ``backends`` in turn; the first one has the two ends.

    Each stage is a group where there are several ``ranks``. If ``beside``, tokens are drawn in a thread of their own,
    and one more step than there are stages travels.
    """

    def open_parts() -> EngineParts:
        checkpoint = Checkpoint.open(path)
        options = BackendOptions(threads=1, exact=exact)
        stages, owned = [], ExitStack()
        for index, layers in enumerate(split):
            chosen = backend.choose(backends[index % len(backends)], checkpoint)
            model = owned.enter_context(stage_model(checkpoint, layers, chosen.name, options, ranks))
            info = stage_info(
                index=index, layers=layers, backend=chosen.name, device=model.device, chunk=model.chunk,
                context=checkpoint.context, rewinds=model.rewinds,
            )  # fmt: skip
            stages.append((info, model))
        made = ring(stages)
        owned.callback(made.close)
        made.close = owned.close  # type: ignore[method-assign]  # ends the ranks too
        return EngineParts(
            made,
            backend.choose(backends[0], checkpoint).load_embedding_and_head(checkpoint, options),
            draft,
            together=together,
            spare_steps=int(beside),
            draws_beside=beside,
        )

    return EngineLoop(open_parts, eos=frozenset(), budget=budget)


class Brake:
    """Holds the engines of this process after a number of steps, until it is released or a request is cancelled.

    An engine over stages in other processes is to be held for less than ten seconds: these forget who is silent.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._steps: int | None = None
        self._released = threading.Event()
        send_next, cancel = StepRunner.send_next, EngineLoop.cancel

        def held_send(runner: StepRunner) -> bool:
            if self._steps is not None and self._steps <= 0:
                assert self._released.wait(PATIENCE_S), "nobody released it"
            sent = send_next(runner)
            if self._steps is not None:
                self._steps -= sent
            return sent

        def releasing_cancel(engine: EngineLoop, request: EngineRequest) -> None:
            cancel(engine, request)
            self.release()

        monkeypatch.setattr(StepRunner, "send_next", held_send)
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
