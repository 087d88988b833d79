"""A model that computes one step ahead: the same tokens as without, and few steps in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepp.backend.base import BackendOptions
from edgepp.backend.mlx.backend import MlxBackend
from edgepp.backend.mlx.one_ahead import OneAheadEnds, OneAheadStage
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.local_ring import LocalRing
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.errors import StageFault, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint
from tests import reference
from tests.builders.stages import stage_info
from tests.engines import collect, local_engine

EXACT = BackendOptions(exact=True)
PROMPT = [7, 3, 11, 250, 9, 1]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), TINY)


@pytest.fixture
def parts(path: Path) -> tuple[OneAheadStage, OneAheadEnds]:
    return MlxBackend().load_one_ahead(Checkpoint.open(path), EXACT)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item per step of one row that a device began: the position of the row."""
    positions: list[int] = []
    begin = OneAheadStage._begin

    def counted(stage: OneAheadStage, cache: Any, *args: Any) -> Any:
        positions.append(cache.length)
        return begin(stage, cache, *args)

    monkeypatch.setattr(OneAheadStage, "_begin", counted)
    return positions


def ahead_engine(path: Path) -> EngineLoop:
    def open_parts() -> EngineParts:
        checkpoint = Checkpoint.open(path)
        stage, ends = MlxBackend().load_one_ahead(checkpoint, EXACT)
        info = stage_info(layers=LayerRange(0, checkpoint.num_layers), chunk=4, context=checkpoint.context)
        return EngineParts(LocalRing([(info, stage)]), ends)

    return EngineLoop(open_parts, eos=frozenset())


@pytest.fixture
def engines(path: Path) -> Iterator[tuple[EngineLoop, EngineLoop]]:
    """An engine that computes ahead, and one that does not."""
    with ahead_engine(path) as ahead, local_engine(path, [LayerRange(0, TINY.layers)], ["mlx"]) as plain:
        yield ahead, plain


def answers(engine: EngineLoop, asked: Sequence[tuple[Sequence[int], GenerateOptions]]) -> list[Any]:
    requests = [engine.submit(prompt, options) for prompt, options in asked]
    return [(collect(request), request.sampled) for request in requests]


def test_greedy_tokens_are_those_of_mlx_lm_and_one_step_is_in_vain(path: Path, begun: list[int]) -> None:
    with ahead_engine(path) as engine:
        assert answers(engine, [(PROMPT, GenerateOptions(max_tokens=40))]) == [(reference.greedy(path, PROMPT, 40), [])]
    assert begun == list(range(len(PROMPT), len(PROMPT) + 40))


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingOptions(temperature=0.8, seed=5),
        SamplingOptions(temperature=2.0, top_p=0.9, seed=5),
        SamplingOptions(repetition_penalty=1.3),
        SamplingOptions(logprobs=3),
        SamplingOptions(logit_bias=((12, 50.0),)),
    ],
)
def test_every_kind_of_sampling_draws_as_without_steps_ahead(
    engines: tuple[EngineLoop, EngineLoop], sampling: SamplingOptions
) -> None:
    asked = [(PROMPT, GenerateOptions(max_tokens=30, sampling=sampling))]
    ahead, plain = (answers(engine, asked) for engine in engines)
    assert ahead == plain


def test_tokens_other_than_the_largest_soon_end_steps_ahead(path: Path, begun: list[int]) -> None:
    options = GenerateOptions(max_tokens=60, sampling=SamplingOptions(temperature=50.0, seed=1))
    with ahead_engine(path) as engine:
        collect(engine.submit(PROMPT, options))
    assert len(begun) <= 60 + 2


def test_requests_that_decode_together(engines: tuple[EngineLoop, EngineLoop]) -> None:
    asked = [(PROMPT[n:], GenerateOptions(max_tokens=10 + 5 * n)) for n in range(4)]
    ahead, plain = (answers(engine, asked) for engine in engines)
    assert [tokens for tokens, _ in ahead] == [tokens for tokens, _ in plain]


def run(stage: OneAheadStage, ends: OneAheadEnds, sequence: int, ids: Sequence[int]) -> int:
    return int(ends.logits(stage.extend(sequence, ends.embed(ids))[-1:])[0].argmax())


def ahead_of(parts: tuple[OneAheadStage, OneAheadEnds]) -> list[int]:
    """The tokens of sequence 1, whose newest position is followed by a step ahead."""
    stage, ends = parts
    stage.open(1, 50)
    ids = list(PROMPT)
    ids.append(run(stage, ends, 1, ids))
    ids.append(run(stage, ends, 1, ids[-1:]))
    return ids


Change = Callable[[OneAheadStage], None]


@pytest.mark.parametrize(
    "change",
    [
        lambda stage: stage.truncate(1, 7),
        lambda stage: stage.resize(1, 60),
        lambda stage: stage.fork(1, 2, 5, 20),
        lambda stage: stage.set_length(1, 7),
        lambda stage: stage.export_kv(1, LayerRange(0, 4), 0, 7),
    ],
)
def test_no_operation_sees_the_step_ahead(
    parts: tuple[OneAheadStage, OneAheadEnds], path: Path, change: Change
) -> None:
    stage, ends = parts
    ids = ahead_of(parts)
    assert stage.length(1) == 7
    change(stage)
    assert stage.length(1) == 7
    assert run(stage, ends, 1, ids[-1:]) == reference.greedy(path, PROMPT, 3)[-1]


def test_another_token_than_that_of_the_step_ahead(parts: tuple[OneAheadStage, OneAheadEnds], path: Path) -> None:
    ids = ahead_of(parts)[:-1]
    other = (ids[-1] + 1) % TINY.vocabulary
    assert run(*parts, 1, [other]) == reference.greedy(path, [*ids, other], 1)[0]


def test_a_sequence_that_is_full_has_no_step_ahead(parts: tuple[OneAheadStage, OneAheadEnds]) -> None:
    stage, ends = parts
    stage.open(1, 7)
    token = run(stage, ends, 1, PROMPT)
    run(stage, ends, 1, [token])
    with pytest.raises(StageFault, match="opened for 7"):
        stage.extend(1, ends.embed([token]))


def test_a_freed_sequence_takes_its_step_ahead_with_it(parts: tuple[OneAheadStage, OneAheadEnds]) -> None:
    ahead_of(parts)
    parts[0].free(1)
    ahead_of(parts)


def test_what_is_no_token_or_no_result_is_refused(parts: tuple[OneAheadStage, OneAheadEnds]) -> None:
    stage, ends = parts
    stage.open(1, 50)
    with pytest.raises(UsageError, match="from 0 to 319"):
        ends.embed([320])
    with pytest.raises(StageFault, match="not \\(T, 1\\)"):
        stage.extend(1, np.zeros((1, 2), np.float32))
    with pytest.raises(StageFault, match="from 0 to 319"):
        stage.extend(1, np.array([[np.nan]], np.float32))
    rows = stage.extend(1, ends.embed(PROMPT))
    for _ in range(10):
        stage.extend(1, ends.embed([1]))
    with pytest.raises(StageFault, match="dropped before"):
        ends.logits(rows[-1:])


def test_logits_on_a_device_look_like_an_array(parts: tuple[OneAheadStage, OneAheadEnds], path: Path) -> None:
    stage, ends = parts
    stage.open(1, 50)
    logits: Any = ends.logits(stage.extend(1, ends.embed(PROMPT)))
    expected = reference.logits(path, PROMPT)
    np.testing.assert_allclose(np.asarray(logits), expected, atol=1e-4)
    assert logits.shape == expected.shape
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))
    np.testing.assert_allclose(logits[0, :5], expected[0, :5], atol=1e-4)
    for row, wanted in zip(logits[2:], expected[2:], strict=True):
        assert (len(row), row.argmax()) == (TINY.vocabulary, wanted.argmax())
        assert row.max() == np.asarray(row).max()


def test_a_damaged_embedding_ends_the_request_that_uses_it(tmp_path: Path) -> None:
    damaged = make_checkpoint(tmp_path / "damaged", replace(TINY, tied=False))
    file = damaged / "model.safetensors"
    raw = bytearray(file.read_bytes())
    row = 8 + int.from_bytes(raw[:8], "little") + PROMPT[0] * TINY.hidden * 4  # the embedding comes first
    raw[row : row + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(raw)
    with ahead_engine(damaged) as engine:
        with pytest.raises(StageFault, match="not numbers or infinite"):
            collect(engine.submit(PROMPT, GenerateOptions(max_tokens=3)))
        assert len(collect(engine.submit(PROMPT[1:], GenerateOptions(max_tokens=3)))) == 3
