"""A prompt gets the same numbers, whatever was computed before and wherever its chunks are cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp import backend
from edgepp.backend.base import BackendOptions, EmbeddingAndHead, StageModel
from edgepp.engine.chunk_sizer import ChunkSizer
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.sampling import Sampled
from edgepp.engine.scheduler import MIN_ROWS
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY
from edgepp.model.weights.checkpoint import Checkpoint
from tests.builders.properties import examples
from tests.engines import collect, local_engine

SPLIT = [LayerRange(0, 3), LayerRange(3, 4)]
LENGTH = 150


def prompt(seed: int, tokens: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, TINY.vocabulary, tokens)]


def asked(engine: EngineLoop, text: Sequence[int], tokens: int = 12) -> tuple[list[Sampled], int]:
    """Tokens with their exact log-probabilities, and how many tokens of the prompt were reused."""
    request = engine.submit(text, GenerateOptions(tokens, sampling=SamplingOptions(logprobs=3)))
    collect(request)
    return request.sampled, request.timing.reused


@pytest.mark.parametrize("which", ["onnx", "mlx"])
def test_a_repeated_prompt_gets_the_same_numbers(tiny: Path, which: str) -> None:
    text = prompt(0, LENGTH)
    with local_engine(tiny, SPLIT, [which], exact=False) as engine:
        first, none = asked(engine, text)
        assert none == 0
        for before in (text, text[:90], [*text[:100], *prompt(1, 30)], prompt(2, 40), text[: LENGTH - 1]):
            asked(engine, before, 3)
            again, reused = asked(engine, text)
            assert again == first
            assert reused == LENGTH - MIN_ROWS


@pytest.mark.parametrize("shared", [16, 17, 64, 65, LENGTH - 2, LENGTH - 1])
def test_a_prompt_that_begins_like_another_gets_the_numbers_it_gets_alone(tiny: Path, shared: int) -> None:
    text = prompt(0, LENGTH)
    with local_engine(tiny, SPLIT, ["onnx"], exact=False) as engine:
        alone, _ = asked(engine, text)
    with local_engine(tiny, SPLIT, ["onnx"], exact=False) as engine:
        asked(engine, [*text[:shared], *prompt(3, 20)])
        after, reused = asked(engine, text)
        assert after == alone
        assert reused == min(shared, LENGTH - MIN_ROWS)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 16, 29, 31, 32])
def test_the_length_of_chunks_changes_no_number(tiny: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = prompt(0, 129)
    with local_engine(tiny, SPLIT, ["onnx"], exact=False) as engine:
        usual, _ = asked(engine, text)
        monkeypatch.setattr(ChunkSizer, "chunk", length)
        monkeypatch.setattr(ChunkSizer, "interleaved", lambda *_: length)
        other = engine.submit(text, GenerateOptions(12, sampling=SamplingOptions(logprobs=3)), owner="another")
        collect(other)
        assert other.timing.reused == 0
        assert other.sampled == usual


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> tuple[StageModel, EmbeddingAndHead]:
    checkpoint = Checkpoint.open(tiny)
    chosen, options = backend.choose("onnx", checkpoint), BackendOptions()
    return chosen.load_stage(checkpoint, LayerRange(0, 4), options), chosen.load_embedding_and_head(checkpoint, options)


@settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_row_does_not_depend_on_how_many_are_computed_with_it(
    loaded: tuple[StageModel, EmbeddingAndHead], data: st.DataObject
) -> None:
    """The reason for ``MIN_ROWS``: kernels for two rows give the same numbers per row as kernels for a whole chunk."""
    stage, ends = loaded
    rows = data.draw(st.lists(st.integers(MIN_ROWS, stage.chunk), min_size=1, max_size=8))
    hidden = ends.embed(prompt(4, sum(rows) - sum(rows) % 2))
    stage.open(1, len(hidden))
    pairs = [stage.extend(1, pair) for pair in np.split(hidden, len(hidden) // 2)]
    stage.open(1, len(hidden))
    parts = [stage.extend(1, part) for part in np.split(hidden, np.cumsum(rows)[:-1]) if len(part) > 1]
    stage.free(1)
    computed = np.concatenate(parts)
    np.testing.assert_array_equal(computed, np.concatenate(pairs)[: len(computed)])
