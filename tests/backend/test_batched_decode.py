"""Decoding many sequences at once: each sequence gets the numbers that it gets alone, while others join and leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp.backend.base import BackendOptions, SequenceFault, StageModel
from edgepp.backend.loader import Backend
from edgepp.backend.mlx.backend import MlxBackend
from edgepp.backend.onnx.backend import OnnxBackend
from edgepp.errors import StageFault
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Array, Checkpoint
from tests.builders.properties import examples

pytestmark = pytest.mark.usefixtures("small_lanes")

BACKENDS: dict[str, type[Backend]] = {"onnx": OnnxBackend, "mlx": MlxBackend}
SHAPES = {
    "q4": replace(TINY, bits=4, group_size=32, kv_heads=1, dtype="float16"),
    "q8": replace(TINY, bits=8, group_size=32, dtype="bfloat16"),
    "bf16": replace(TINY, kv_heads=1, dtype="bfloat16"),
    "wide": replace(TINY, head_size=32),
}
EXACT_TOLERANCE = 1e-4
"""Largest difference over the largest number of a row: float32 sums in another order."""
DEFAULT_TOLERANCE = 0.08
"""The tolerance with int8 activations, where kernels for one row and for several round differently."""
QUANTISED_TOLERANCE = 0.2
"""The tolerance with keys and values in few bits, whose rounding depends on that of the rows of a step."""
CAPACITY = 60


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("models")
    return {name: Checkpoint.open(make_checkpoint(folder / name, shape)) for name, shape in SHAPES.items()}


def load(backend: str, checkpoint: Checkpoint, *, exact: bool = True, kv_bits: int | None = None) -> StageModel:
    options = BackendOptions(exact=exact, kv_bits=kv_bits)
    return BACKENDS[backend]().load_stage(checkpoint, LayerRange(0, 4), options)


@pytest.fixture(params=BACKENDS)
def stage(request: pytest.FixtureRequest, checkpoints: dict[str, Checkpoint]) -> StageModel:
    return load(request.param, checkpoints["q4"])


def states(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, TINY.hidden)).astype(np.float32)


class Walk:
    """A stage and its inputs; every result is compared with the same rows in one pass of a lone sequence."""

    def __init__(self, stage: StageModel, tolerance: float) -> None:
        self.stage = stage
        self.tolerance = tolerance
        self.given: dict[int, Array] = {}
        self.seed = 0

    def rows(self, n: int) -> Array:
        self.seed += 1
        return states(n, self.seed)

    def check(self, sequence: int, hidden: Array, result: Array) -> None:
        self.given[sequence] = np.concatenate([self.given[sequence], hidden])
        self.stage.open(-1, CAPACITY)
        expected = self.stage.extend(-1, self.given[sequence])[-len(hidden) :]
        self.stage.free(-1)
        assert self.stage.length(sequence) == len(self.given[sequence])
        assert np.abs(result - expected).max() <= self.tolerance * np.abs(expected).max()

    def extend(self, sequence: int, n: int) -> None:
        if sequence not in self.given:
            self.stage.open(sequence, CAPACITY)
            self.given[sequence] = states(0)
        hidden = self.rows(min(n, CAPACITY - len(self.given[sequence])))
        if len(hidden):
            self.check(sequence, hidden, self.stage.extend(sequence, hidden))

    def decode(self, wanted: list[int]) -> None:
        batch = [n for n in wanted if n in self.given and len(self.given[n]) < CAPACITY]
        if batch:
            hidden = self.rows(len(batch))
            for sequence, row, result in zip(batch, hidden, self.stage.decode(batch, hidden), strict=True):
                self.check(sequence, row[None], result[None])

    def truncate(self, sequence: int, n: int) -> None:
        if sequence in self.given:
            self.given[sequence] = self.given[sequence][: max(0, len(self.given[sequence]) - n)]
            self.stage.truncate(sequence, len(self.given[sequence]))

    def fork(self, source: int, n: int) -> None:
        """Fork a new sequence from the source without the last ``n`` positions."""
        length = len(self.given.get(source, ())) - n
        if length > 0:
            sequence = (source + 1) % 6
            self.stage.fork(source, sequence, length, CAPACITY)
            self.given[sequence] = self.given[source][:length]

    def resize(self, sequence: int, n: int) -> None:
        """Shrink capacities to the lengths, and set them back to ``CAPACITY`` before the next step."""
        if sequence in self.given:
            self.stage.resize(sequence, len(self.given[sequence]) + n)
            self.stage.resize(sequence, CAPACITY + n)

    def free(self, sequence: int, _: int = 0) -> None:
        self.given.pop(sequence, None)
        self.stage.free(sequence)


SEQUENCE = st.integers(0, 5)
STEP = st.one_of(
    st.tuples(st.just("extend"), SEQUENCE, st.integers(1, 20)),
    st.tuples(st.just("decode"), st.lists(SEQUENCE, min_size=1, unique=True), st.integers(1, 4)),
    st.tuples(st.just("truncate"), SEQUENCE, st.integers(0, 12)),
    st.tuples(st.just("fork"), SEQUENCE, st.integers(0, 12)),
    st.tuples(st.just("resize"), SEQUENCE, st.integers(1, 9)),
    st.tuples(st.just("free"), SEQUENCE, st.just(0)),
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("backend", "exact"), [("onnx", True), ("onnx", False), ("mlx", True)])
def test_any_walk_gives_each_sequence_the_numbers_it_gets_alone(
    backend: str, exact: bool, shape: str, checkpoints: dict[str, Checkpoint]
) -> None:
    stage = load(backend, checkpoints[shape], exact=exact)
    walk_about(stage, EXACT_TOLERANCE if exact else DEFAULT_TOLERANCE)


@pytest.mark.parametrize(("backend", "kv_bits"), [("onnx", 8), ("mlx", 8), ("mlx", 4)])
def test_so_does_any_walk_with_keys_and_values_in_few_bits(
    backend: str, kv_bits: int, checkpoints: dict[str, Checkpoint]
) -> None:
    walk_about(load(backend, checkpoints["wide"], kv_bits=kv_bits), QUANTISED_TOLERANCE)


def walk_about(stage: StageModel, tolerance: float) -> None:
    """Run arbitrary steps in order."""

    @settings(max_examples=examples(12), suppress_health_check=list(HealthCheck))
    @given(st.lists(STEP, min_size=8, max_size=30))
    def walk(steps: list[tuple[str, Any, int]]) -> None:
        walk = Walk(stage, tolerance)
        for sequence in range(4):
            walk.extend(sequence, 3 * sequence + 1)
        for name, which, n in steps:
            if name == "decode":
                for _ in range(n):  # a batch that stays the same is gathered
                    walk.decode(which)
            else:
                getattr(walk, name)(which, n)
        for sequence in list(walk.given):
            walk.free(sequence)
        assert stage.kv_bytes == 0

    walk()


def test_a_batch_of_one_is_an_extension_by_one_row(stage: StageModel) -> None:
    hidden = states(6)
    for sequence in (1, 2):
        stage.open(sequence, 20)
        stage.extend(sequence, hidden[:3])
    for row in hidden[3:]:
        np.testing.assert_array_equal(stage.decode([1], row[None]), stage.extend(2, row[None]))


def test_the_order_of_sequences_in_a_call_does_not_matter(stage: StageModel) -> None:
    for sequence in range(4):
        stage.open(sequence, 20)
        stage.extend(sequence, states(2 + sequence, sequence))
    hidden = states(4, 9)
    results = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]):
        out = np.empty_like(hidden)
        out[order] = stage.decode(order, hidden[order])
        results.append(out)
        for sequence in range(4):
            stage.truncate(sequence, 2 + sequence)
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_a_sequence_that_cannot_take_a_step_is_named_and_the_others_continue(stage: StageModel) -> None:
    for sequence, capacity in ((1, 8), (2, 4), (3, 8), (4, 4)):
        stage.open(sequence, capacity)
        stage.extend(sequence, states(4, sequence))
    with pytest.raises(SequenceFault, match="4") as full:
        stage.decode([1, 2, 3, 4], states(4))
    assert full.value.sequences == (2, 4)
    with pytest.raises(SequenceFault, match="no sequence") as unknown:
        stage.decode([1, 7, 3], states(3))
    assert unknown.value.sequences == (7,)
    assert [stage.length(n) for n in (1, 2, 3, 4)] == [4, 4, 4, 4]
    assert stage.decode([1, 3], states(2)).shape == (2, TINY.hidden)
    assert [stage.length(n) for n in (1, 3)] == [5, 5]


def test_an_invalid_step_is_refused(stage: StageModel) -> None:
    stage.open(1, 8)
    stage.open(2, 8)
    for sequences, hidden in (([1, 2], states(3)), ([1, 2], states(2)[:, :9]), ([], states(0)), ([1, 2], states(2)[0])):
        with pytest.raises(StageFault, match="hidden states of shape"):
            stage.decode(sequences, hidden)
    with pytest.raises(StageFault, match="twice"):
        stage.decode([1, 1], states(2))
    assert stage.length(1) == stage.length(2) == 0


def test_empty_sequences_decode_together_with_long_ones(stage: StageModel) -> None:
    walk = Walk(stage, EXACT_TOLERANCE)
    walk.extend(0, 30)
    for sequence in (1, 2):
        stage.open(sequence, CAPACITY)
        walk.given[sequence] = states(0)
    walk.decode([1, 2])
    walk.decode([0, 1, 2])
