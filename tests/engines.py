"""The real engine over stages in this process: fast enough to try every split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path

from edgepp import backend
from edgepp.backend.base import BackendOptions
from edgepp.engine.draft import Draft
from edgepp.engine.engine import Engine, Parts
from edgepp.engine.live import Request
from edgepp.engine.request import GenerateOptions
from edgepp.engine.ring import LocalRing, StageInfo
from edgepp.errors import EdgeppError
from edgepp.layers import LayerRange
from edgepp.model.checkpoint import Checkpoint


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
) -> Engine:
    """An engine whose stages are ``split``, computed by ``backends`` in turn; the first one has the two ends."""

    def open_parts() -> Parts:
        checkpoint = Checkpoint.open(path)
        options = BackendOptions(threads=1, exact=exact)
        stages = []
        for index, layers in enumerate(split):
            chosen = backend.choose(backends[index % len(backends)], checkpoint)
            model = chosen.load_stage(checkpoint, layers, options)
            info = StageInfo(
                index,
                layers,
                "here",
                "",
                0,
                chosen.name,
                model.device,
                model.chunk,
                checkpoint.context,
                0.0,
                0.0,
                rewinds=model.rewinds,
            )
            stages.append((info, model))
        return Parts(LocalRing(stages), backend.choose(backends[0], checkpoint).load_ends(checkpoint, options), draft)

    return Engine(open_parts, eos=frozenset(), budget=budget)


def collect(request: Request) -> list[int]:
    """A request's tokens, once it has ended; its error is raised."""
    tokens: list[int] = []
    while True:
        match request.events.get(timeout=120):
            case int() as token:
                tokens.append(token)
            case EdgeppError() as error:
                raise error
            case _:
                return tokens


def greedy_tokens(engine: Engine, prompt: Sequence[int], n: int) -> list[int]:
    """``n`` greedy tokens after ``prompt``."""
    return collect(engine.submit(prompt, GenerateOptions(max_tokens=n)))
