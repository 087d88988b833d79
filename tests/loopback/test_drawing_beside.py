"""Tokens drawn beside the engine thread: other steps go on meanwhile, and whatever happens to a request in between."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgepp import backend
from edgepp.backend.base import BackendOptions, EmbeddingAndHead
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.ring import RingEvent, Send, SendBatch
from edgepp.errors import StageLost
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array, Checkpoint
from tests.engines import collect
from tests.local_rings import MortalRing
from tests.waiting import PATIENCE_S, eventually

TWO = (LayerRange(0, 3), LayerRange(3, 4))
PROMPTS = ([5, 6, 7, 8, 9], [11, 12, 13], [21, 22, 23, 24])
OPTIONS = GenerateOptions(16, sampling=SamplingOptions(temperature=1.0, seed=3, frequency_penalty=0.4))


class HeldEnds:
    """Ends whose head waits, in the thread that draws, until it is released."""

    any_thread = True

    def __init__(self, ends: EmbeddingAndHead) -> None:
        self._ends = ends
        self.positional, self.vocabulary = ends.positional, ends.vocabulary
        self.entered, self.released = threading.Event(), threading.Event()

    def embed(self, tokens: Sequence[int], position: int | None = None, /) -> Array:
        return self._ends.embed(tokens, position)

    def logits(self, hidden: Array) -> Array:
        if threading.current_thread().name == "head":
            self.entered.set()
            assert self.released.wait(PATIENCE_S), "nobody released it"
        return self._ends.logits(hidden)


class HeldRing(MortalRing):
    """Brings nothing until ``began`` is set."""

    sent = 0

    def __init__(self, path: Path, splits: tuple[LayerRange, ...]) -> None:
        super().__init__(path, splits)
        self.polls, self.began = threading.Event(), threading.Event()

    def poll(self, timeout_s: float) -> list[RingEvent]:
        self.polls.set()
        return super().poll(timeout_s) if self.began.wait(PATIENCE_S) else []

    def send(self, step: Send | SendBatch) -> None:
        super().send(step)
        self.sent += 1


class Held:
    """An engine whose head is held, and which has begun to draw for the first of two requests."""

    def __init__(self, tiny: Path) -> None:
        self.tiny = tiny
        self.ring: HeldRing
        self.ends: HeldEnds
        self.engine = EngineLoop(self._open, eos=frozenset(), recovers=True)
        assert self.ring.polls.wait(PATIENCE_S)
        self.asked = [self.ask(prompt) for prompt in PROMPTS[:2]]
        self.ring.began.set()
        assert self.ends.entered.wait(PATIENCE_S)

    def _open(self) -> EngineParts:
        checkpoint = Checkpoint.open(self.tiny)
        options = BackendOptions(exact=True)
        self.ends = HeldEnds(backend.choose("onnx", checkpoint).load_embedding_and_head(checkpoint, options))
        self.ring = HeldRing(self.tiny, TWO)
        return EngineParts(self.ring, self.ends, spare_steps=1, draws_beside=True)

    def ask(self, prompt: Sequence[int]) -> EngineRequest:
        return self.engine.submit(prompt, OPTIONS, owner=str(prompt))


@pytest.fixture(scope="module")
def undisturbed(tiny: Path) -> list[list[int]]:
    """The tokens that each prompt gets where one thread does everything."""

    def open_parts() -> EngineParts:
        checkpoint = Checkpoint.open(tiny)
        ends = backend.choose("onnx", checkpoint).load_embedding_and_head(checkpoint, BackendOptions(exact=True))
        return EngineParts(MortalRing(tiny, TWO), ends)

    with EngineLoop(open_parts, eos=frozenset()) as engine:
        return [collect(engine.submit(prompt, OPTIONS, owner=str(prompt))) for prompt in PROMPTS]


def test_other_steps_are_sent_while_a_token_is_drawn(tiny: Path, undisturbed: list[list[int]]) -> None:
    held = Held(tiny)
    with held.engine:
        sent = held.ring.sent
        late = held.ask(PROMPTS[2])
        eventually("the step of another request is sent", lambda: held.ring.sent > sent)
        assert not held.ends.released.is_set()
        held.ends.released.set()
        assert [collect(one) for one in (*held.asked, late)] == undisturbed


def test_a_request_can_be_cancelled_while_its_token_is_drawn(tiny: Path, undisturbed: list[list[int]]) -> None:
    held = Held(tiny)
    with held.engine:
        held.engine.cancel(held.asked[0])
        assert held.asked[0].events.get(timeout=PATIENCE_S) == "cancelled"
        held.ends.released.set()
        assert collect(held.asked[1]) == undisturbed[1]
        assert held.asked[0].events.empty()
        assert held.engine.load.live == 0


@pytest.mark.parametrize("drawn", ["in the pause", "after the pause"])
def test_a_token_that_is_drawn_when_the_ring_is_lost_is_kept(
    tiny: Path, undisturbed: list[list[int]], drawn: str
) -> None:
    held = Held(tiny)
    with held.engine:
        held.engine.suspend(StageLost("stage 1 is gone", gone=1), lost=True).result(PATIENCE_S)
        if drawn == "in the pause":
            held.ends.released.set()
            assert held.asked[0].events.get(timeout=PATIENCE_S) == undisturbed[0][0]
        held.engine.resume(MortalRing(tiny, TWO)).result(PATIENCE_S)
        held.ends.released.set()
        missing = undisturbed[0][1:] if drawn == "in the pause" else undisturbed[0]
        assert [collect(one) for one in held.asked] == [missing, undisturbed[1]]
        assert all(one.timing.tokens == 16 for one in held.asked)


def test_closing_ends_a_request_whose_token_is_drawn(tiny: Path) -> None:
    held = Held(tiny)
    closing = threading.Thread(target=held.engine.close)
    closing.start()
    eventually("it takes no orders", lambda: held.engine.lost is not None or not closing.is_alive())
    held.ends.released.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert "closed" in str(held.asked[0].events.get(timeout=PATIENCE_S))
