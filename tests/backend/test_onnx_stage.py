"""The ONNX backend against mlx-lm, against itself in several stages, and against misuse."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgepp.backend.base import BackendOptions, StepInterrupted
from edgepp.backend.onnx import kv_cache as onnx_cache
from edgepp.backend.onnx import stage as onnx_stage
from edgepp.backend.onnx.backend import OnnxBackend
from edgepp.backend.onnx.embedding_and_head import OnnxEmbeddingAndHead
from edgepp.backend.onnx.stage import OnnxStage
from edgepp.errors import ModelError, StageFault
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import Shape
from edgepp.model.random_checkpoint import LLAMA3_ROPE, TINY
from edgepp.model.weights.checkpoint import Checkpoint
from tests import reference
from tests.builders.checkpoints import Checkpoints

Array = npt.NDArray[Any]

DEFAULT = BackendOptions()
EXACT = BackendOptions(exact=True)

QUANTISED = replace(TINY, bits=4, group_size=32, embedding_bits=8, dtype="float16")
SHAPES = {
    "f32": TINY,
    "f16": replace(TINY, dtype="float16"),
    "bf16-untied": replace(TINY, dtype="bfloat16", tied=False),
    "q4-g32": QUANTISED,
    "q4-g64-bf16": replace(TINY, bits=4, group_size=64, dtype="bfloat16"),
    "q8": replace(TINY, bits=8, group_size=32),
    "q3": replace(TINY, bits=3, group_size=64),
    "q5": replace(TINY, bits=5, group_size=32),
    "q6": replace(TINY, bits=6, group_size=32, tied=False),
    "odd-groups": replace(TINY, bits=4, group_size=32, hidden=96, ffn=160),
    "mistral": replace(QUANTISED, family="mistral"),
    "qwen2": replace(QUANTISED, family="qwen2"),
    "qwen2-f32": replace(TINY, family="qwen2"),
    "qwen3": replace(QUANTISED, family="qwen3", head_size=32),
}

Make = Callable[..., Checkpoint]


@pytest.fixture
def make(checkpoints: Checkpoints) -> Make:
    def make(shape: Shape = QUANTISED, **options: Any) -> Checkpoint:
        return Checkpoint.open(checkpoints(shape, **options))

    return make


def ids_of(checkpoint: Checkpoint, n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(7).integers(0, checkpoint.vocab_size, n)]


def load(checkpoint: Checkpoint, cuts: list[int], options: BackendOptions) -> list[OnnxStage]:
    return [OnnxBackend().load_stage(checkpoint, LayerRange(a, b), options) for a, b in pairwise(cuts)]


def run(stages: list[OnnxStage], hidden: Array, chunks: list[int], capacity: int = 512) -> Array:
    """Hidden states of the last stage for a new sequence, computed in ``chunks``."""
    for stage in stages:
        stage.open(0, capacity)
    parts = []
    for a, b in pairwise(np.cumsum([0, *chunks])):
        x = hidden[a:b]
        for stage in stages:
            x = stage.extend(0, x)
        parts.append(x)
    for stage in stages:
        stage.free(0)
    return np.concatenate(parts)


def greedy(stages: list[OnnxStage], ends: OnnxEmbeddingAndHead, prompt: list[int], n: int) -> list[int]:
    for stage in stages:
        stage.open(0, len(prompt) + n)
    tokens: list[int] = []
    step = prompt
    for _ in range(n):
        x = ends.embed(step)
        for stage in stages:
            x = stage.extend(0, x)
        step = [int(ends.logits(x[-1:])[0].argmax())]
        tokens += step
    return tokens


@pytest.mark.parametrize("name", SHAPES)
def test_exact_mode_gives_the_logits_and_the_greedy_tokens_of_mlx_lm(name: str, make: Make) -> None:
    checkpoint = make(SHAPES[name])
    stages, ends = load(checkpoint, [0, 2, 4], EXACT), OnnxBackend().load_embedding_and_head(checkpoint, EXACT)
    prompt = ids_of(checkpoint, 40)
    logits = ends.logits(run(stages, ends.embed(prompt), [40]))
    np.testing.assert_allclose(logits, reference.logits(checkpoint.path, prompt), atol=2e-4)
    assert greedy(stages, ends, prompt, 16) == reference.greedy(checkpoint.path, prompt, 16)


@pytest.mark.parametrize("name", SHAPES)
def test_default_mode_is_close_to_mlx_lm(name: str, make: Make) -> None:
    checkpoint = make(SHAPES[name])
    stages, ends = load(checkpoint, [0, 4], DEFAULT), OnnxBackend().load_embedding_and_head(checkpoint, DEFAULT)
    ids = ids_of(checkpoint, 64)
    logits = ends.logits(run(stages, ends.embed(ids), [64]))
    expected = reference.logits(checkpoint.path, ids)
    assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.05 * expected.std()


@pytest.mark.parametrize("rope", [LLAMA3_ROPE, {"type": "linear", "factor": 4.0}])
def test_scaled_rotary_embeddings_are_mlx_lms(rope: dict[str, Any], make: Make) -> None:
    checkpoint = make(TINY, rope_scaling=rope, rope_theta=500000.0)
    stages, ends = load(checkpoint, [0, 4], EXACT), OnnxBackend().load_embedding_and_head(checkpoint, EXACT)
    ids = ids_of(checkpoint, 500)
    logits = ends.logits(run(stages, ends.embed(ids), [500]))
    np.testing.assert_allclose(logits, reference.logits(checkpoint.path, ids), atol=1e-3)


@pytest.mark.parametrize("options", [DEFAULT, EXACT], ids=["default", "exact"])
@pytest.mark.parametrize("name", ["f32", "q4-g32", "qwen2", "qwen3"])
def test_any_split_into_stages_is_bit_identical(name: str, options: BackendOptions, make: Make) -> None:
    checkpoint = make(SHAPES[name])
    hidden = OnnxBackend().load_embedding_and_head(checkpoint, options).embed(ids_of(checkpoint, 24))
    chunks = [20, 1, 1, 2]
    whole = run(load(checkpoint, [0, 4], options), hidden, chunks)
    for cuts in ([0, 2, 4], [0, 1, 4], [0, 3, 4], [0, 1, 2, 3, 4]):
        np.testing.assert_array_equal(run(load(checkpoint, cuts, options), hidden, chunks), whole)


@pytest.mark.parametrize("options", [DEFAULT, BackendOptions(kv_bits=8)], ids=["float32", "8-bit"])
def test_a_step_that_is_interrupted_leaves_the_sequences_as_they_were(options: BackendOptions, make: Make) -> None:
    checkpoint = make()
    (stage,) = load(checkpoint, [0, 4], options)
    hidden = OnnxBackend().load_embedding_and_head(checkpoint, options).embed(ids_of(checkpoint, 33))
    whole = run([stage], hidden, [30, 1, 2])
    assert stage.interruption is not None
    for sequence in (0, 1):
        stage.open(sequence, 64)
        stage.extend(sequence, hidden[:30])

    def compute_until_interrupted() -> None:
        while True:
            stage.extend(1, hidden[30:])
            stage.truncate(1, 30)

    threading.Timer(0.0, stage.interruption.set).start()
    with pytest.raises(StepInterrupted):
        compute_until_interrupted()
    with pytest.raises(StepInterrupted):
        stage.decode([0, 1], hidden[[30, 30]])
    assert [stage.length(sequence) for sequence in (0, 1)] == [30, 30]
    stage.interruption.clear()
    for sequence in (0, 1):
        later = np.concatenate([stage.extend(sequence, hidden[30:31]), stage.extend(sequence, hidden[31:])])
        np.testing.assert_array_equal(later, whole[30:])


@pytest.mark.parametrize("options", [DEFAULT, EXACT], ids=["default", "exact"])
@pytest.mark.parametrize("name", ["f32", "q4-g32", "qwen3"])
def test_chunks_and_growth_change_no_number(
    name: str, options: BackendOptions, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make(SHAPES[name])
    stages = load(checkpoint, [0, 4], options)
    n = 346
    hidden = OnnxBackend().load_embedding_and_head(checkpoint, options).embed(ids_of(checkpoint, n))
    whole = run(stages, hidden, [n])
    for chunks in ([64] * 5 + [n - 320], [17, n - 17], [n - 2, 2], [2] * (n // 2)):
        np.testing.assert_array_equal(run(stages, hidden, chunks), whole)
    np.testing.assert_array_equal(run(stages, hidden, [n], capacity=n), whole)
    monkeypatch.setattr(onnx_cache, "FIRST_POSITIONS", 64)  # it outgrows two lanes
    for chunks in ([n], [64] * 5 + [n - 320], [2] * (n // 2)):
        np.testing.assert_array_equal(run(stages, hidden, chunks), whole)


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_rows_that_only_fill_up_positions_change_no_number(
    kv_bits: int | None, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make()
    stages = load(checkpoint, [0, 4], BackendOptions(kv_bits=kv_bits))
    hidden = OnnxBackend().load_embedding_and_head(checkpoint, DEFAULT).embed(ids_of(checkpoint, 130))
    chunks = [17, 2, 45, 1, 1, 64]
    expected = run(stages, hidden, chunks, capacity=130)
    monkeypatch.setattr(onnx_stage, "_POSITIONS", 4)  # as on ARM
    monkeypatch.setattr(onnx_cache, "FIRST_POSITIONS", 64)  # it outgrows a lane
    np.testing.assert_array_equal(run(stages, hidden, chunks, capacity=130), expected)


def test_threads_change_no_number(make: Make) -> None:
    checkpoint = make()
    hidden = OnnxBackend().load_embedding_and_head(checkpoint, DEFAULT).embed(ids_of(checkpoint, 64))
    one, two = (load(checkpoint, [0, 4], BackendOptions(threads=n, spin=n == 2)) for n in (1, 2))
    np.testing.assert_array_equal(run(two, hidden, [48, 16]), run(one, hidden, [48, 16]))


def test_a_sequence_is_undisturbed_by_others_and_by_its_own_past(make: Make) -> None:
    checkpoint = make()
    (stage,) = load(checkpoint, [0, 4], DEFAULT)
    hidden = OnnxBackend().load_embedding_and_head(checkpoint, DEFAULT).embed(ids_of(checkpoint, 300))
    expected = run([stage], hidden, [100, *[1] * 200])
    stage.open(1, 400)
    stage.open(2, 400)
    got = [stage.extend(1, hidden[:100])]
    stage.extend(2, hidden[50:150])
    for i in range(100, 300):
        stage.extend(2, hidden[i - 50 : i - 49])
        got.append(stage.extend(1, hidden[i : i + 1]))
        stage.extend(1, hidden[:1])
        stage.truncate(1, i + 1)
    np.testing.assert_array_equal(np.concatenate(got), expected)


def test_length_truncate_free_and_kv_bytes(make: Make) -> None:
    checkpoint = make()
    (stage,) = load(checkpoint, [1, 3], DEFAULT)
    pages = -(-512 * 16 * 4 // mmap.PAGESIZE)  # positions, their size, float32
    per_page = 2 * 2 * 2 * mmap.PAGESIZE  # layers, key and value, heads
    stage.open(4, 512)
    assert stage.length(4) == 0
    stage.extend(4, np.ones((5, checkpoint.hidden_size), np.float32))
    assert stage.length(4) == 5
    stage.truncate(4, 2)
    assert stage.length(4) == 2
    stage.truncate(4, 9)
    assert stage.length(4) == 2
    assert stage.kv_bytes == per_page
    stage.extend(4, np.ones((510, checkpoint.hidden_size), np.float32))
    assert stage.kv_bytes == pages * per_page
    stage.free(4)
    stage.free(4)
    assert stage.kv_bytes == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_stage_takes_half_precision_hidden_states(dtype: str, make: Make) -> None:
    import ml_dtypes

    checkpoint = make()
    (stage,) = load(checkpoint, [0, 1], DEFAULT)
    hidden = np.random.default_rng(1).normal(size=(6, checkpoint.hidden_size))
    half = hidden.astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    out = run([stage], half, [6])
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, run([stage], half.astype(np.float32), [6]))


def test_faults_name_the_cause_and_leave_the_sequence_usable(make: Make) -> None:
    checkpoint = make()
    (stage,) = load(checkpoint, [0, 1], DEFAULT)
    hidden = np.ones((8, checkpoint.hidden_size), np.float32)
    with pytest.raises(StageFault, match="no sequence 3"):
        stage.extend(3, hidden)
    with pytest.raises(StageFault, match="context of 512"):
        stage.open(3, 513)
    stage.open(3, 10)
    stage.extend(3, hidden)
    with pytest.raises(StageFault, match="16 positions"):
        stage.extend(3, hidden)
    with pytest.raises(StageFault, match=r"not \(T, 64\)"):
        stage.extend(3, np.ones((1, 7), np.float32))
    assert stage.extend(3, hidden[:2]).shape == (2, checkpoint.hidden_size)


def test_the_embedding_refuses_tokens_outside_the_vocabulary(make: Make) -> None:
    ends = OnnxBackend().load_embedding_and_head(make(), DEFAULT)
    with pytest.raises(StageFault, match="vocabulary"):
        ends.embed([320])
    assert ends.embed([]).shape == (0, 64)


def test_a_stage_without_its_layers_is_a_model_error(make: Make) -> None:
    with pytest.raises(ModelError, match="layers 0-3"):
        OnnxBackend().load_stage(make(), LayerRange(2, 5), DEFAULT)


def test_progress_ends_at_the_layers_bytes(make: Make) -> None:
    checkpoint, seen = make(), []
    OnnxBackend().load_stage(checkpoint, LayerRange(1, 4), DEFAULT, lambda *step: seen.append(step))
    total = checkpoint.layer_bytes(LayerRange(1, 4))
    assert seen == [(total * n // 3, total) for n in (1, 2, 3)]
