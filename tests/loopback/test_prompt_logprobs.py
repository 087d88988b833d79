"""Log-probabilities of a prompt's own tokens: those of mlx-lm on the whole model, however the prompt is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepp import backend
from edgepp.backend.base import BackendOptions
from edgepp.engine import ledger
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.local_ring import LocalRing
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.sampling import with_logprobs
from edgepp.errors import UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY
from edgepp.model.weights.checkpoint import Checkpoint
from tests import reference
from tests.builders.checkpoints import Checkpoints
from tests.engines import Brake, LateRing, collect, local_engine
from tests.local_rings import MortalRing
from tests.waiting import PATIENCE_S, eventually

TWO_STAGES = (LayerRange(0, 3), LayerRange(3, 5))
SCORED = GenerateOptions(max_tokens=2, prompt_logprobs=3)
PROMPT = [int(token) for token in np.random.default_rng(1).integers(3, TINY.vocabulary, 210)]  # several chunks


@pytest.fixture
def path(checkpoints: Checkpoints) -> Path:
    return checkpoints(replace(TINY, layers=5))


def check(path: Path, prompt: Sequence[int], request: EngineRequest) -> None:
    """Check the scores of a request that has ended against mlx-lm's logits."""
    rows = reference.logits(path, prompt)[:-1]
    expected = [with_logprobs(row, token, 3) for row, token in zip(rows, prompt[1:], strict=True)]
    found = request.prompt_sampled
    assert [one.token for one in found] == list(prompt[1:])
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-3)
    likeliest = [[value for _, value in one.top] for one in found]
    assert np.allclose(likeliest, [[value for _, value in one.top] for one in expected], atol=1e-3)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"backends": ["onnx"]},
        {"split": (LayerRange(0, 5),)},
        {"ring": LateRing, "beside": True},
        {"ranks": (1, 1)},
    ],
    ids=["mlx", "onnx", "one stage", "late, drawn beside", "ranks"],
)
def test_scores_are_those_of_the_whole_model(path: Path, how: dict[str, Any]) -> None:
    given: dict[str, Any] = {"split": TWO_STAGES, "backends": ["mlx"], "ring": LocalRing, **how}
    with local_engine(path, **given) as engine:
        plain = engine.submit(PROMPT, GenerateOptions(max_tokens=2))
        request = engine.submit(PROMPT, SCORED)
        again = engine.submit(PROMPT, SCORED)
        tokens = collect(plain)
        assert collect(request) == collect(again) == tokens == reference.greedy(path, PROMPT, 2)
    check(path, PROMPT, request)
    assert again.prompt_sampled == request.prompt_sampled
    assert request.timing.reused == again.timing.reused == 0  # a prefix that is reused gives no hidden states
    assert not plain.prompt_sampled


def test_others_reuse_the_prefix_of_a_scored_prompt(path: Path) -> None:
    with local_engine(path, TWO_STAGES, ["onnx"]) as engine:
        scored = engine.submit(PROMPT, SCORED)
        collect(scored)
        plain = engine.submit(PROMPT, GenerateOptions(max_tokens=2))
        collect(plain)
    assert plain.timing.reused > 0


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_prompts(path: Path, length: int) -> None:
    with local_engine(path, TWO_STAGES, ["mlx"]) as engine:
        request = engine.submit(PROMPT[:length], SCORED)
        collect(request)
    check(path, PROMPT[:length], request)


def test_a_preempted_prompt_is_scored_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brake = Brake(monkeypatch)
    monkeypatch.setattr(ledger, "HEADROOM", 8)
    with local_engine(path, TWO_STAGES, ["onnx"], budget=90, beside=True) as engine:
        brake.after(0)
        requests = [engine.submit(PROMPT[n : n + 20], replace(SCORED, max_tokens=50)) for n in range(3)]
        brake.release()
        for n, request in enumerate(requests):
            collect(request)
            check(path, PROMPT[n : n + 20], request)
        assert engine.load.preempted > 0


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_prompt_is_scored_once_where_stages_are_lost_meanwhile(path: Path, steps: int) -> None:
    checkpoint = Checkpoint.open(path)

    def open_parts() -> EngineParts:
        ends = backend.choose("onnx", checkpoint).load_embedding_and_head(checkpoint, BackendOptions(exact=True))
        return EngineParts(MortalRing(path, TWO_STAGES, steps), ends)

    with EngineLoop(open_parts, eos=frozenset(), recovers=True) as engine:
        request = engine.submit(PROMPT, SCORED)
        eventually("the ring is lost", lambda: engine.suspended is not None)
        engine.resume(MortalRing(path, TWO_STAGES)).result(PATIENCE_S)
        collect(request)
    check(path, PROMPT, request)


def test_the_token_that_ends_the_answer_is_known(path: Path) -> None:
    with local_engine(path, TWO_STAGES, ["onnx"]) as engine:
        options = replace(SCORED, sampling=SamplingOptions(logprobs=1))
        (first, _) = collect(engine.submit(PROMPT, options))
        ended = engine.submit(PROMPT, options)
        ended.eos = frozenset({first})
        assert not collect(ended)
    assert ended.end is not None
    assert (ended.end.token, ended.end.top[0][1]) == (first, ended.end.logprob)


@pytest.mark.parametrize("wanted", [-1, 21, True, 1.0])
def test_numbers_out_of_range_are_refused(wanted: Any) -> None:
    with pytest.raises(UsageError, match="prompt_logprobs"):
        GenerateOptions(prompt_logprobs=wanted)
