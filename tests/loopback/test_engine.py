"""Many requests at once: each gets the tokens that it gets alone, and nothing grows without limit."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepp.engine import ledger
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.local_ring import LocalRing
from edgepp.engine.loop import EngineLoop
from edgepp.engine.prompt_lookup import OwnerTexts
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.speculation import MAX_GUESSES, GuessPlan, SpeculationControl, SpeculationCosts
from edgepp.errors import EdgeppError, NotReady, StageLost, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY
from tests.engines import Brake, LateRing, collect, greedy_tokens, local_engine
from tests.waiting import PATIENCE_S

SPLITS = {
    1: (LayerRange(0, 4),),
    2: (LayerRange(0, 3), LayerRange(3, 4)),
    3: (LayerRange(0, 1), LayerRange(1, 2), LayerRange(2, 4)),
    4: tuple(LayerRange(layer, layer + 1) for layer in range(4)),
}
TOLERANCE = 1e-4
"""Log-probabilities closer than this may change order: float32 sums depend on how a prompt is cut."""


@pytest.fixture
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[EngineLoop]:
    with local_engine(tiny, SPLITS[2], ["onnx"], budget=getattr(request, "param", None)) as made:
        yield made


def prompt(random: np.random.Generator, tokens: int) -> list[int]:
    return [int(token) for token in random.integers(3, TINY.vocabulary, tokens)]


class Restless:
    """Guesses by prompt lookup, else random tokens: a mix of right and wrong guesses."""

    def __init__(self, owner: str) -> None:
        self._lookup, self._random = OwnerTexts().begin(owner), np.random.default_rng(0)

    def propose(self, ids: Sequence[int], max_guesses: int) -> Sequence[int]:
        return self._lookup.propose(ids, max_guesses) or prompt(
            self._random, int(self._random.integers(0, max_guesses + 1))
        )

    def close(self) -> None:
        pass


def always(_control: SpeculationControl, _costs: SpeculationCosts, *, behind: bool, together: bool) -> GuessPlan:
    """As many guesses as there may be."""
    return GuessPlan(together=MAX_GUESSES) if together else GuessPlan(behind=3 if behind else 0)


@dataclass
class Alone:
    """The tokens that a prompt gets alone, and the places where its two best logits are nearly equal."""

    tokens: list[int]
    ties: set[int]

    @classmethod
    def of(cls, engine: EngineLoop, text: Sequence[int], n: int) -> Alone:
        request = engine.submit(text, GenerateOptions(n, sampling=SamplingOptions(logprobs=2)), owner=str(text))
        tokens = collect(request)
        gaps = [sampled.top[0][1] - sampled.top[1][1] for sampled in request.sampled]
        return cls(tokens, {at for at, gap in enumerate(gaps) if gap < TOLERANCE})

    def agrees(self, came: Sequence[int]) -> bool:
        """Whether ``came`` begins the same; behind a tie that went the other way, anything is right."""
        for at, (one, other) in enumerate(zip(came, self.tokens, strict=False)):
            if one != other:
                return at in self.ties
        return True


def alike_prompts(seed: int) -> list[list[int]]:
    """Twelve prompts with three beginnings among them."""
    random = np.random.default_rng(seed)
    stems = [prompt(random, int(tokens)) for tokens in random.integers(20, 50, 3)]
    return [stems[n % 3] + prompt(random, int(tokens)) for n, tokens in enumerate(random.integers(1, 40, 12))]


@functools.cache
def each_alone(path: Path, stages: int, backend: str) -> list[Alone]:
    """What each of these prompts gets from an engine that has nothing else to do."""
    with local_engine(path, SPLITS[stages], [backend]) as engine:
        return [Alone.of(engine, one, 40) for one in alike_prompts(stages)]


WAYS = [(backend, guessing, False) for backend in ("mlx", "onnx") for guessing in ("plain", "together", "behind")]
WAYS += [("onnx", "plain", True), ("onnx", "behind", True)]
GROUPS = [(1, "onnx", "together", False, (1, 1)), (2, "onnx", "behind", False, (1, 1))]
"""Stages of two ranks."""


@pytest.mark.parametrize(
    ("stages", "backend", "guessing", "beside", "ranks"),
    [(stages, *way, (1,)) for way in WAYS for stages in SPLITS] + GROUPS,
)
def test_any_mix_of_requests_gets_the_tokens_that_each_gets_alone(
    tiny: Path, stages: int, backend: str, guessing: str, beside: bool, ranks: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Random arrivals, lengths, owners and cancellations, prompts that begin alike, and too little room for all.

    Float32; where the two best logits lie closer than ``TOLERANCE``, either is right, and such places must be few.
    """
    monkeypatch.setattr(SpeculationControl, "plan", always)  # else guessing that goes wrong is soon given up
    monkeypatch.setattr(ledger, "HEADROOM", 8)
    random = np.random.default_rng(stages)
    prompts = alike_prompts(stages)
    draft = Restless if guessing != "plain" else None
    ring = LateRing if guessing == "behind" or beside else LocalRing
    rounds = 6 if backend == "onnx" and len(ranks) == 1 else 3
    alone = each_alone(tiny, stages, backend)
    with local_engine(
        tiny,
        SPLITS[stages],
        [backend],
        budget=160,
        draft=draft,
        together=guessing == "together",
        ring=ring,
        beside=beside,
        ranks=ranks,
    ) as engine:
        for _ in range(rounds):
            asked: list[tuple[int, int, EngineRequest]] = []
            cancelled: set[int] = set()
            for _ in range(int(random.integers(4, 12))):
                which, tokens = int(random.integers(len(prompts))), int(random.integers(1, 41))
                options, owner = GenerateOptions(max_tokens=tokens), random.choice(["ann", "bob"])
                asked.append((which, tokens, engine.submit(prompts[which], options, owner)))
                if random.random() < 0.2:
                    victim = asked[int(random.integers(len(asked)))][2]
                    cancelled.add(victim.id)
                    engine.cancel(victim)
                time.sleep(float(random.random()) * 0.01)
            for which, tokens, request in asked:
                came = collect(request)
                assert alone[which].agrees(came)
                assert len(came) == tokens or request.id in cancelled
        load = engine.load
        assert (load.live, load.waiting) == (0, 0)
        assert load.kept <= 160
        assert load.reuse.reused > 0
        assert sum(len(one.ties) for one in alone) <= 0.02 * sum(len(one.tokens) for one in alone)


@pytest.mark.parametrize("engine", [90], indirect=True)
def test_a_preempted_request_still_gets_its_answer(engine: EngineLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    brake = Brake(monkeypatch)
    monkeypatch.setattr(ledger, "HEADROOM", 8)
    random = np.random.default_rng(4)
    texts = [prompt(random, 20) for _ in range(3)]
    alone = [greedy_tokens(engine, text, 50) for text in texts]
    assert engine.load.preempted == 0
    brake.after(0)
    requests = [engine.submit(text, GenerateOptions(max_tokens=50), owner="another") for text in texts]
    brake.release()
    assert [collect(request) for request in requests] == alone
    assert engine.load.preempted > 0
    assert requests[0].timing.last_token_s < min(request.timing.last_token_s for request in requests[1:])


@pytest.mark.parametrize("engine", [400], indirect=True)
def test_the_next_turn_computes_only_what_is_new(engine: EngineLoop) -> None:
    random = np.random.default_rng(1)
    first = engine.submit(prompt(random, 200), GenerateOptions(max_tokens=10))
    collect(first)
    turn = [*first.ids, *prompt(random, 20)]
    second = engine.submit(turn, GenerateOptions(max_tokens=5))
    collect(second)
    assert second.timing.reused == len(first.ids) - 1  # the newest token was never sent
    stranger = engine.submit(turn, GenerateOptions(max_tokens=5), owner="stranger")
    collect(stranger)
    assert stranger.timing.reused == 0


@pytest.mark.parametrize("engine", [2000], indirect=True)
def test_prompts_that_come_together_share_what_they_begin_with(engine: EngineLoop) -> None:
    random = np.random.default_rng(2)
    text = prompt(random, 150)
    requests = [engine.submit(text, GenerateOptions(max_tokens=8)) for _ in range(4)]
    answers = [collect(request) for request in requests]
    assert answers == answers[:1] * 4
    assert [request.timing.reused for request in requests] == [
        0,
        148,
        148,
        148,
    ]  # two rows are left to compute: see MIN_ROWS


def test_a_request_whose_source_was_freed_is_prefilled_alone(engine: EngineLoop) -> None:
    """A copy whose source was freed before its first step is prefilled without sharing."""
    random = np.random.default_rng(3)
    text = prompt(random, 60)
    expected = greedy_tokens(engine, text, 8)
    kept = next(iter(engine._loop.core._ledger._prefixes._kept))
    for worker in engine._loop.ring._runners:  # type: ignore[attr-defined]
        worker.free(0, kept)
    longer = engine.submit([*text[:40], *prompt(random, 5)], GenerateOptions(max_tokens=4))
    assert len(collect(longer)) == 4
    assert greedy_tokens(engine, text, 8) == expected


@pytest.mark.parametrize("engine", [64], indirect=True)
def test_requests_beyond_the_budget_wait_their_turn(engine: EngineLoop) -> None:
    random = np.random.default_rng(0)
    one, two = prompt(random, 30), prompt(random, 20)
    requests = [engine.submit(text, GenerateOptions(max_tokens=20)) for text in (one, two, one)]
    assert [len(collect(request)) for request in requests] == [20, 20, 20]
    assert requests[1].timing.first_token_s > requests[0].timing.last_token_s
    assert requests[2].timing.first_token_s > requests[1].timing.last_token_s


@pytest.mark.parametrize("engine", [64], indirect=True)
def test_a_request_that_can_never_fit_is_refused_with_the_numbers(engine: EngineLoop) -> None:
    with pytest.raises(UsageError, match="need 70 positions of KV cache, and there are 64"):
        engine.submit(prompt(np.random.default_rng(0), 50), GenerateOptions(max_tokens=20))


@pytest.mark.parametrize("engine", [64], indirect=True)
def test_a_request_that_waits_can_be_cancelled(engine: EngineLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    text = prompt(np.random.default_rng(0), 30)
    Brake(monkeypatch).after(0)
    first = engine.submit(text, GenerateOptions(max_tokens=30))
    second = engine.submit(text, GenerateOptions(max_tokens=30))
    engine.cancel(second)
    assert second.events.get(timeout=PATIENCE_S) == "cancelled"
    assert len(collect(first)) == 30


def test_an_engine_that_ended_holds_no_weights(tiny: Path) -> None:
    """Also while something still refers to the engine, as errors do."""
    with local_engine(tiny, SPLITS[2], ["onnx"]) as engine:
        held = [
            weakref.ref(engine._loop._runner._ends),
            *(weakref.ref(w.model) for w in engine._loop.ring._runners),
        ]
    assert [one() for one in held] == [None] * 3


@pytest.mark.parametrize("engine", [64], indirect=True)
def test_the_queue_is_bounded(engine: EngineLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_WAITING", 2)
    text = prompt(np.random.default_rng(0), 30)
    brake = Brake(monkeypatch)
    brake.after(0)
    requests = [engine.submit(text, GenerateOptions(max_tokens=34)) for _ in range(8)]
    brake.release()
    ended = [_last(request) for request in requests]
    assert ended.count("length") >= 2
    refused = [error for error in ended if isinstance(error, EdgeppError)]
    assert refused
    assert all("are waiting already" in str(error) for error in refused)


def _last(request: EngineRequest) -> object:
    """The finish reason or the error of a request."""
    while isinstance(event := request.events.get(timeout=PATIENCE_S), int):
        continue
    return event


def test_an_order_that_comes_while_the_engine_ends_is_refused(tiny: Path) -> None:
    """Whether the thread takes it no more, or has ended: nobody waits for ever."""
    with local_engine(tiny, SPLITS[2], ["onnx"]) as engine:
        engine._loop.inbox.put(None)
        orders = [engine.suspend(NotReady("the layers move"), lost=False) for _ in range(3)]
        assert all(isinstance(order.exception(PATIENCE_S), EdgeppError) for order in orders)
        engine._thread.join(PATIENCE_S)
        late = [engine.suspend(NotReady("the layers move"), lost=lost) for lost in (False, True)]
        assert all("closed" in str(order.exception(PATIENCE_S)) for order in late)


def test_a_request_that_comes_while_the_engine_ends_hears_why(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the thread takes it no more, has ended, or is closed: nobody waits for ever."""
    gone = StageLost("stage 1 is gone", gone=1)

    def lost(_: float) -> Any:
        raise gone

    with local_engine(tiny, SPLITS[2], ["onnx"]) as engine:
        monkeypatch.setattr(engine._loop.ring, "poll", lost)
        asked = [engine.submit([1, 2, 3], GenerateOptions(max_tokens=4)) for _ in range(3)]
        engine._thread.join(PATIENCE_S)
        asked.append(engine.submit([1, 2, 3], GenerateOptions(max_tokens=4)))
        assert [_last(request) for request in asked] == [gone] * 4
    with pytest.raises(StageLost, match="stage 1 is gone"):
        engine.submit([1, 2, 3], GenerateOptions(max_tokens=4))
