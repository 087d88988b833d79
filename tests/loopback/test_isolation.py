"""An error in one request ends that request alone: all others get the tokens that they get alone."""

from __future__ import annotations

import asyncio
import json
import queue
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgepp
from edgepp.coordinator.answer_service import AnswerService
from edgepp.coordinator.json_codec import encode_question
from edgepp.coordinator.live_answers import LiveAnswers
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.local_ring import LocalRing
from edgepp.engine.loop import EngineLoop
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.engine.request_isolation import token_ids
from edgepp.engine.ring import Send, SendBatch
from edgepp.engine.sampling import Sampler
from edgepp.engine.text_stream import TextStream
from edgepp.errors import EdgeppError, StageFault, UsageError
from edgepp.layers import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.text.client import TextClient
from edgepp.model.text.conversation import Conversation
from edgepp.model.weights.safetensors_header import read_header
from edgepp.python_api.answer import Answer as ApiAnswer
from edgepp.python_api.answer import Begun
from edgepp.python_api.cancellable_thread import run_in_thread
from edgepp.wire.message_codec import decode
from edgepp.wire.messages.clients import Declined
from tests.engines import LateRing, collect, greedy_tokens, local_engine
from tests.waiting import PATIENCE_S

SPLIT = [LayerRange(0, 2), LayerRange(2, 4)]
POISON = 7
"""A token whose embedding is damaged."""


class Panic(BaseException):
    """Like an error of a Rust library: not an ``Exception``."""


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


@pytest.mark.parametrize("odd", [True, "3", 3.0, None, -1, TINY.vocabulary, 1 << 70, np.int64(-1), np.bool_(True)])
def test_ids_that_the_model_does_not_have_are_refused_at_submission(odd: Any) -> None:
    with pytest.raises(UsageError, match="token 1 of the prompt"):
        token_ids([5, odd, 6], TINY.vocabulary)


def test_numpy_ids_become_plain_ints() -> None:
    ids = token_ids(np.arange(5, dtype=np.int32), 5)  # type: ignore[arg-type]
    assert ids == [0, 1, 2, 3, 4]
    assert {type(token) for token in ids} == {int}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    "row", [[np.nan, 1, 2], [0, np.inf, 1], [-np.inf] * 3, [np.nan] * 3], ids=["nan", "inf", "nothing", "all nan"]
)
def test_logits_without_a_distribution_are_an_error(row: list[float], temperature: float) -> None:
    with pytest.raises(StageFault, match="logits are not numbers"):
        Sampler(SamplingOptions(temperature=temperature, logprobs=1))(np.array(row, np.float32), [1])


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False) | st.just(-np.inf), min_size=2, max_size=9),
    st.sampled_from([0.0, 1e-5, 1e-3, 1.0, 100.0]),
    st.sampled_from([0.01, 1.0, 100.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0, 1, 1 << 31]),
    st.sampled_from([0.0, 1.0]),
)
def test_any_other_logits_give_a_token_that_the_model_allows(
    row: list[float], temperature: float, penalty: float, top_p: float, top_k: int, min_p: float
) -> None:
    """Also for the largest floats and for options at the ends of their ranges; log-probabilities are numbers."""
    logits = np.array(row, np.float32)
    if logits.max() == -np.inf:
        logits[0] = 0
    options = SamplingOptions(temperature, penalty, top_p, min_p, top_k, seed=1, logprobs=20)
    sampled = Sampler(options)(logits, [0, 1])
    assert logits[sampled.token] > -np.inf
    assert all(np.isfinite(value) for _, value in sampled.top)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GenerateOptions(max_tokens=0), "at least 1"),
        (lambda: GenerateOptions(max_tokens="9"), "whole number"),  # type: ignore[arg-type]
        (lambda: GenerateOptions(max_tokens=True), "whole number"),
        (lambda: GenerateOptions(stop="ab"), "tuple of strings"),  # type: ignore[arg-type]
        (lambda: GenerateOptions(stop=("a",) * 17), "16 stop strings"),
        (lambda: GenerateOptions(stop=("a" * 1025,)), "1024 characters"),
        (lambda: SamplingOptions(temperature=float("nan")), "temperature"),
        (lambda: SamplingOptions(temperature="1"), "temperature"),  # type: ignore[arg-type]
        (lambda: SamplingOptions(top_p=True), "top_p"),
        (lambda: SamplingOptions(logit_bias=((1, float("nan")),)), "logit_bias"),
        (lambda: SamplingOptions(logit_bias=((1, float("inf")),)), "logit_bias"),
        (lambda: SamplingOptions(logit_bias=((True, 1.0),)), "logit_bias"),
        (lambda: SamplingOptions(logit_bias={1: 2.0}), "logit_bias"),  # type: ignore[arg-type]
    ],
)
def test_invalid_options_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def test_a_bias_for_a_token_that_the_model_does_not_have_is_refused_at_submission(tmp_path: Path) -> None:
    with local_engine(make_checkpoint(tmp_path / "m", TINY), SPLIT, ["onnx"]) as engine:
        options = SamplingOptions(logit_bias=((TINY.vocabulary, 1.0),))
        with pytest.raises(UsageError, match="logit_bias names token"):
            engine.submit(text(0), GenerateOptions(4, sampling=options))


class Breaking:
    """A detokenizer that fails at its third token."""

    def __init__(self) -> None:
        self.tokens = 0

    def add(self, _token: int) -> str:
        self.tokens += 1
        if self.tokens == 3:
            raise Panic("tokenizer")
        return "a"

    def finish(self) -> str:
        return ""


def test_a_tokenizer_that_panics_ends_the_answer_and_frees_its_place(tmp_path: Path) -> None:
    with local_engine(make_checkpoint(tmp_path / "m", TINY), SPLIT, ["onnx"]) as engine:
        request = engine.submit(text(0), GenerateOptions(300))
        answer = TextStream(engine, request, Breaking())
        with pytest.raises(EdgeppError, match=f"request {request.id}, making text of its tokens, failed: .*Panic"):
            "".join(answer)
        collect(request)  # ends, since it was cancelled
        assert len(request.ids) - request.prompt_tokens <= 300


@pytest.mark.parametrize("error", [Panic("here"), SystemExit(1), ValueError("odd"), EdgeppError("ours")])
def test_every_error_of_an_answer_reaches_its_reader(error: BaseException) -> None:
    def begin() -> Any:
        raise error

    answer = ApiAnswer(lambda: nullcontext(Begun(begin(), lambda: None)))
    with pytest.raises(EdgeppError, match=r"here|SystemExit|odd|ours"):
        asyncio.run(asyncio.wait_for(answer.whole(), 60))


@pytest.mark.parametrize("error", [Panic("here"), SystemExit(1), StopIteration("over")])
def test_every_error_of_opening_reaches_the_caller(error: BaseException) -> None:
    def work(_: object) -> None:
        raise error

    with pytest.raises(EdgeppError, match="opening failed"):
        asyncio.run(asyncio.wait_for(run_in_thread(work, lambda _: None), 60))


def test_a_prompt_that_is_not_text_is_refused_and_the_engine_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with edgepp.Engine(str(make_checkpoint(tmp_path / "m", TINY)), threads=1, backend="onnx") as engine:
            for raw in (True, False):
                with pytest.raises(EdgeppError, match="surrogate"):
                    await engine.ask("half \ud83d of a pair", raw=raw).whole()
            with pytest.raises(UsageError, match="must be text"):
                await engine.ask([{"role": "user", "content": 5}]).whole()  # type: ignore[dict-item]
            answer = await engine.ask("Once upon", GenerateOptions(4, ignore_eos=True), raw=True).whole()
            assert len(answer.token_ids) == 4

    asyncio.run(main())


def test_a_prompt_that_cannot_fit_is_refused_without_being_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding a million characters takes seconds, and the process that encodes serves all requests."""
    encoded = 0

    def encode(*_: object) -> list[int]:
        nonlocal encoded
        encoded += 1
        return [3] * 256

    monkeypatch.setattr(TextClient, "encode", encode)
    monkeypatch.setattr(TextClient, "encode_chat", encode)
    options = PipelineOptions(str(make_checkpoint(tmp_path / "m", TINY)), backend="onnx", threads=1, context=256)
    with Pipeline(options) as pipeline:
        for prompt in ("a word " * 150_000, Conversation.of("a word " * 150_000)):
            with pytest.raises(
                UsageError, match=r"at least \d+ tokens and an answer do not fit into the context of 256 tokens"
            ):
                pipeline.ask(prompt, GenerateOptions())
        assert not encoded
        with pytest.raises(
            UsageError, match="a prompt of 256 tokens and an answer do not fit into the context of 256 tokens"
        ):
            pipeline.ask("a word " * 20, GenerateOptions())
        assert encoded == 1


@pytest.mark.parametrize("error", [Panic("half \ud83d"), ValueError("odd"), EdgeppError("half \ud83d", "\ud83d")])
def test_every_error_of_an_answer_reaches_the_client_of_a_coordinator(error: BaseException) -> None:
    class Serving:
        def acquire(self, *_: object) -> None:
            raise error

    heard: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()
    answers = AnswerService(LiveAnswers(Serving()))  # type: ignore[arg-type]
    form = encode_question("hello", GenerateOptions(4))
    form = json.loads(json.dumps(form))
    answers.begin((b"route", 3), "key", form, heard.put)
    message = decode(heard.get(timeout=PATIENCE_S)[0])
    assert isinstance(message, Declined)
    assert message.request_id == 3
