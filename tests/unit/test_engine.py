"""Many requests at once: whatever the mix, each gets what it gets alone; and nothing grows without limit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgepp.engine import engine as module
from edgepp.engine.engine import Engine, Request
from edgepp.engine.request import GenerateOptions
from edgepp.errors import EdgeppError, UsageError
from edgepp.layers import LayerRange
from edgepp.model.random import TINY, make_checkpoint
from tests.engines import collect, greedy_tokens, local_engine

SPLITS = {
    1: (LayerRange(0, 4),),
    2: (LayerRange(0, 3), LayerRange(3, 4)),
    4: tuple(LayerRange(layer, layer + 1) for layer in range(4)),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), TINY)


@pytest.fixture
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with local_engine(tiny, SPLITS[2], ["onnx"], budget=getattr(request, "param", None)) as made:
        yield made


def prompt(random: np.random.Generator, tokens: int) -> list[int]:
    return [int(token) for token in random.integers(3, TINY.vocabulary, tokens)]


@pytest.mark.parametrize("backend", ["mlx", "onnx"])
@pytest.mark.parametrize("stages", SPLITS)
def test_any_mix_of_requests_gets_the_tokens_that_each_gets_alone(tiny: Path, stages: int, backend: str) -> None:
    """Random arrivals, lengths and cancellations; float32, where no two best logits of this model come close."""
    random = np.random.default_rng(stages)
    prompts = [prompt(random, int(tokens)) for tokens in random.integers(1, 90, 12)]
    with local_engine(tiny, SPLITS[stages], [backend]) as engine:
        alone = [greedy_tokens(engine, one, 14) for one in prompts]
        for _ in range(6 if backend == "onnx" else 3):
            asked: list[tuple[int, int, Request]] = []
            cancelled: set[int] = set()
            for _ in range(int(random.integers(2, 12))):
                which, tokens = int(random.integers(len(prompts))), int(random.integers(1, 15))
                asked.append((which, tokens, engine.submit(prompts[which], GenerateOptions(max_tokens=tokens))))
                if random.random() < 0.3:
                    victim = asked[int(random.integers(len(asked)))][2]
                    cancelled.add(victim.id)
                    engine.cancel(victim)
                time.sleep(float(random.random()) * 0.01)
            for which, tokens, request in asked:
                came = collect(request)
                assert came == alone[which][: len(came)]
                assert len(came) == tokens or request.id in cancelled
        assert all(gauge.sequences == 0 for gauge in engine.gauges)


@pytest.mark.parametrize("engine", [64], indirect=True)
def test_requests_beyond_the_budget_wait_their_turn(engine: Engine) -> None:
    random = np.random.default_rng(0)
    one, two = prompt(random, 30), prompt(random, 20)
    requests = [engine.submit(text, GenerateOptions(max_tokens=20)) for text in (one, two, one)]
    assert [len(collect(request)) for request in requests] == [20, 20, 20]
    assert requests[1].timing.first_token_s > requests[0].timing.last_token_s
    assert requests[2].timing.first_token_s > requests[1].timing.last_token_s


@pytest.mark.parametrize("engine", [64], indirect=True)
def test_what_can_never_fit_is_refused_with_the_numbers(engine: Engine) -> None:
    with pytest.raises(UsageError, match="need 70 positions of KV cache, and there are 64"):
        engine.submit(prompt(np.random.default_rng(0), 50), GenerateOptions(max_tokens=20))


@pytest.mark.parametrize("engine", [64], indirect=True)
def test_a_request_that_waits_can_be_cancelled(engine: Engine) -> None:
    text = prompt(np.random.default_rng(0), 30)
    first = engine.submit(text, GenerateOptions(max_tokens=30))
    second = engine.submit(text, GenerateOptions(max_tokens=30))
    engine.cancel(second)
    assert second.events.get(timeout=30) == "cancelled"
    assert len(collect(first)) == 30


@pytest.mark.parametrize("engine", [64], indirect=True)
def test_the_queue_has_an_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    text = prompt(np.random.default_rng(0), 30)
    requests = [engine.submit(text, GenerateOptions(max_tokens=34)) for _ in range(8)]
    ended = [_last(request) for request in requests]
    assert ended.count("length") >= 2
    refused = [error for error in ended if isinstance(error, EdgeppError)]
    assert refused
    assert all("are waiting already" in str(error) for error in refused)


def _last(request: Request) -> object:
    """How a request ended: its reason or its error."""
    while isinstance(event := request.events.get(timeout=60), int):
        continue
    return event
