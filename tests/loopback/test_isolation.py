"""An error in one request ends that request alone: all others get the tokens that they get alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.local_ring import LocalRing
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.engine.ring import Send, SendBatch
from edgepp.errors import EdgeppError, StageFault, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.safetensors_header import read_header
from tests.engines import LateRing, Panic, collect, greedy_tokens, local_engine
from tests.waiting import PATIENCE_S

SPLIT = [LayerRange(0, 2), LayerRange(2, 4)]
POISON = 7
"""A token whose embedding is damaged."""


class Trouble:
    """A matcher or draft that allows everything, and fails in one of its methods at one token."""

    def __init__(self, call: str, at: int, error: BaseException) -> None:
        self._call, self._at, self._error = call, at, error
        self._calls = 0

    def _may(self, call: str) -> None:
        if call == self._call:
            self._calls += 1
            if self._calls > self._at:
                raise self._error

    @property
    def done(self) -> bool:
        self._may("done")
        return False

    def mask(self, logits: Any) -> Any:
        self._may("mask")
        return logits if self._call != "nothing allowed" else np.full_like(logits, -np.inf)

    def advance(self, _token: int) -> None:
        self._may("advance")

    def forced(self) -> list[int]:
        self._may("forced")
        return {"beyond": [TINY.vocabulary, 1 << 40], "negative": [-1], "poison": [POISON]}.get(self._call, [])

    def propose(self, _ids: Sequence[int], _most: int) -> Sequence[int]:
        self._may("propose")
        return {"beyond": [TINY.vocabulary], "negative": [-5, 3]}.get(self._call, [])

    def close(self) -> None:
        self._may("close")


@pytest.fixture(params=[("onnx", False), ("mlx", False), ("onnx", True)], ids=["onnx", "mlx", "onnx, drawn beside"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineLoop]:
    folder = make_checkpoint(tmp_path / "m", replace(TINY, tied=False))
    file = folder / "model.safetensors"
    place = next(p for p in read_header(file) if p.name == "model.embed_tokens.weight")
    with file.open("r+b") as stream:
        stream.seek(place.start + POISON * place.shape[1] * 4)
        stream.write(np.full(place.shape[1], np.nan, np.float32).tobytes())
    backend, beside = request.param
    ring = LateRing if beside else LocalRing
    with local_engine(folder, SPLIT, [backend], budget=400, ring=ring, beside=beside) as made:
        yield made
        assert made.lost is None
        assert made.load.live == made.load.waiting == 0


@pytest.fixture
def sound(engine: EngineLoop) -> dict[int, list[int]]:
    """The tokens that some prompts get alone."""
    return {seed: greedy_tokens(engine, text(seed), 12) for seed in range(4)}


def text(seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(10, TINY.vocabulary, 20 + 7 * seed)]


TROUBLES = ["mask", "advance", "done", "forced", "nothing allowed"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=5),
    st.sampled_from([*TROUBLES, "token"]),
    st.integers(0, 6),
    st.sampled_from([Panic("overflow"), ValueError("odd"), UsageError("too complex"), MemoryError()]),
    st.sampled_from([0.0, 0.8]),
    st.integers(0, 5),
)
def test_a_poisoned_request_fails_alone(
    engine: EngineLoop,
    sound: dict[int, list[int]],
    others: list[int],
    trouble: str,
    at: int,
    error: BaseException,
    temperature: float,
    place: int,
) -> None:
    """A random mix of requests, one of which fails at a random place and token with a random error."""
    sampling = SamplingOptions(temperature=temperature, logprobs=2)
    asked: list[tuple[int, EngineRequest]] = []
    bad: EngineRequest | None = None
    for n, seed in enumerate([*others, -1]):
        if n == min(place, len(others)):
            bad = poisoned(engine, trouble, at, error, sampling)
        if seed >= 0:
            asked.append((seed, engine.submit(text(seed), GenerateOptions(12))))
    for seed, request in asked:
        assert collect(request) == sound[seed]
    assert bad is not None
    # Only a request that travels alone is asked what is forced.
    with suppress(EdgeppError) if trouble == "forced" else pytest.raises(EdgeppError, match=f"request {bad.id}"):
        collect(bad)


def poisoned(
    engine: EngineLoop, trouble: str, at: int, error: BaseException, sampling: SamplingOptions
) -> EngineRequest:
    ids = text(9)
    if trouble == "token":
        ids.insert(at, POISON)
    matcher: Any = Trouble(trouble, at, error)
    engine.requests.compiler = lambda _, __: matcher
    constraint = None if trouble == "token" else Constraint("json")
    return engine.submit(ids, GenerateOptions(12, sampling=sampling, constraint=constraint))


@pytest.mark.parametrize("call", ["propose", "close", "beyond", "negative"])
def test_guesses_that_fail_change_no_answer(tmp_path: Path, call: str) -> None:
    folder = make_checkpoint(tmp_path / "m", TINY)
    with local_engine(folder, SPLIT, ["onnx"]) as plain:
        expected = greedy_tokens(plain, text(1), 12)
    with local_engine(folder, SPLIT, ["onnx"], draft=lambda _: Trouble(call, 0, Panic("draft"))) as engine:
        assert greedy_tokens(engine, text(1), 12) == expected
        assert engine.lost is None


@pytest.mark.parametrize("forced", ["beyond", "negative"])
def test_forced_tokens_that_the_model_does_not_have_are_not_sent(tmp_path: Path, forced: str) -> None:
    matcher: Any = Trouble(forced, 0, Panic())
    with local_engine(make_checkpoint(tmp_path / "m", TINY), SPLIT, ["onnx"]) as engine:
        expected = greedy_tokens(engine, text(1), 6)
        engine.requests.compiler = lambda _, __: matcher
        assert collect(engine.submit(text(1), GenerateOptions(6, constraint=Constraint("json")))) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_hidden_states_that_are_not_finite_fail_only_their_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """The error names the stage that computed the hidden states."""
    with local_engine(make_checkpoint(tmp_path / "m", TINY), SPLIT, ["onnx"]) as engine:
        expected = [greedy_tokens(engine, text(seed), 12) for seed in range(3)]
        poll, live = engine._loop.ring.poll, engine._loop.core.live

        def damaged(timeout_s: float) -> Any:
            """Damage each step of the victim behind its first token; in the engine thread, so at no other step."""
            events = poll(timeout_s)
            for event in events:
                for row, sequence in enumerate(getattr(event, "sequences", ())):
                    request = live.get(sequence)
                    if request is not None and request.ids[: request.prompt_tokens] == text(1) and request.tokens:
                        event.rows[row, 3] = value
            return events

        monkeypatch.setattr(engine._loop.ring, "poll", damaged)
        requests = [engine.submit(text(seed), GenerateOptions(12), owner="new") for seed in range(3)]
        assert requests[1].events.get(timeout=PATIENCE_S) == expected[1][0]
        with pytest.raises(StageFault, match=r"request \d+: stage 1 .* hidden states that are not numbers"):
            collect(requests[1])
        assert [collect(requests[0]), collect(requests[2])] == [expected[0], expected[2]]
        assert engine.lost is None


@pytest.mark.parametrize("error", [Panic("stage"), RuntimeError("odd"), MemoryError()])
def test_a_step_that_fails_in_a_stage_ends_its_requests_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    with local_engine(make_checkpoint(tmp_path / "m", TINY), SPLIT, ["onnx"]) as engine:
        expected = greedy_tokens(engine, text(0), 12)
        ring: Any = engine._loop.ring
        assert isinstance(ring, LocalRing)
        extend = ring._runners[1].model.extend
        rows: Counter[int] = Counter()

        def failing(slot: int, hidden: Any) -> Any:
            rows[slot] += len(hidden)
            if rows[slot] >= len(text(2)):  # the last chunk of text(2): text(0) and its answer are shorter
                raise error
            return extend(slot, hidden)

        monkeypatch.setattr(ring._runners[1].model, "extend", failing)
        bad, good = (engine.submit(text(seed), GenerateOptions(12), owner="new") for seed in (2, 0))
        assert collect(good) == expected
        with pytest.raises(EdgeppError, match="stage 1"):
            collect(bad)
        assert engine.lost is None


def test_a_step_that_cannot_be_sent_ends_its_requests_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local_engine(make_checkpoint(tmp_path / "m", TINY), SPLIT, ["onnx"]) as engine:
        expected = greedy_tokens(engine, text(0), 12)
        send = engine._loop.ring.send

        def failing(step: Send | SendBatch) -> None:
            if isinstance(step, Send) and step.capacity == 99:
                raise Panic("codec")
            send(step)

        monkeypatch.setattr(engine._loop.ring, "send", failing)
        bad = engine.submit(text(2), GenerateOptions(99 - len(text(2))))
        assert greedy_tokens(engine, text(0), 12) == expected
        with pytest.raises(EdgeppError, match=f"request {bad.id}, sending its prompt, failed: .*Panic: codec"):
            collect(bad)


def test_a_bias_for_a_token_that_the_model_does_not_have_is_refused_at_submission(tmp_path: Path) -> None:
    with local_engine(make_checkpoint(tmp_path / "m", TINY), SPLIT, ["onnx"]) as engine:
        options = SamplingOptions(logit_bias=((TINY.vocabulary, 1.0),))
        with pytest.raises(UsageError, match="logit_bias names token"):
            engine.submit(text(0), GenerateOptions(4, sampling=options))
