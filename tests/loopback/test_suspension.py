"""An engine that outlives its ring: requests pause when a stage is lost, and go on over the next ring."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepp import backend
from edgepp.backend.base import BackendOptions
from edgepp.engine import suspension
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import MAX_RECOVERIES, GenerateOptions, SamplingOptions
from edgepp.engine.ring import Send, SendBatch
from edgepp.errors import EdgeppError, NotReady, PoisonedRequest, StageLost
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint
from tests.engines import collect
from tests.local_rings import LOST, MortalRing
from tests.waiting import PATIENCE_S, eventually

PROMPTS = ([5, 6, 7, 8, 9], [11, 12, 13], [21, 22, 23, 24])
SEEDED = GenerateOptions(24, sampling=SamplingOptions(temperature=1.0, seed=3, frequency_penalty=0.4, logprobs=2))
GREEDY = GenerateOptions(24)
POISON = 77
SILENT = StageLost("stage 1 stopped answering", "ask again")
AWAY = StageLost("node mini is gone", "ask again")


TWO = (LayerRange(0, 3), LayerRange(3, 4))
THREE = (LayerRange(0, 1), LayerRange(1, 3), LayerRange(3, 4))


def mortal_engine(path: Path, steps: int | None = None) -> EngineLoop:
    def open_parts() -> EngineParts:
        checkpoint = Checkpoint.open(path)
        ends = backend.choose("onnx", checkpoint).load_embedding_and_head(checkpoint, BackendOptions(exact=True))
        return EngineParts(MortalRing(path, TWO, steps), ends)

    return EngineLoop(open_parts, eos=frozenset(), recovers=True)


@pytest.fixture(scope="module")
def undisturbed(tiny: Path) -> list[list[int]]:
    with mortal_engine(tiny) as engine:
        return [collect(one) for one in submit_all(engine)]


def ask_all(engine: EngineLoop, ring: MortalRing) -> list[EngineRequest]:
    """Requests over ``ring``, of which none begins before all are there."""
    engine.suspend(NotReady("not yet"), lost=False).result(PATIENCE_S)
    asked = submit_all(engine)
    engine.resume(ring).result(PATIENCE_S)
    return asked


def submit_all(engine: EngineLoop) -> list[EngineRequest]:
    return [
        *(engine.submit(prompt, GREEDY, owner=str(prompt)) for prompt in PROMPTS),
        engine.submit(PROMPTS[0], SEEDED, owner="seeded"),
    ]


@pytest.mark.parametrize("steps", [1, 2, 9, 30])
def test_requests_go_on_with_the_same_tokens_after_a_loss(tiny: Path, undisturbed: list[list[int]], steps: int) -> None:
    with mortal_engine(tiny) as engine:
        asked = ask_all(engine, MortalRing(tiny, TWO, steps))
        eventually("it is suspended", lambda: engine.suspended is LOST)
        engine.resume(MortalRing(tiny, THREE)).result(PATIENCE_S)
        assert [collect(one) for one in asked] == undisturbed
        assert engine.suspended is None
        recovered = [one for one in asked if one.timing.recoveries]
        assert recovered
        assert engine.recoveries == {"prefill": len(recovered)}
        assert all(len(one.stages) == len(one.timing.stages) == 3 for one in asked)
        assert len(asked[-1].sampled) == len(undisturbed[-1])


def test_a_planned_change_waits_for_the_steps_under_way_and_counts_as_no_loss(
    tiny: Path, undisturbed: list[list[int]]
) -> None:
    with mortal_engine(tiny) as engine:
        asked = submit_all(engine)
        for splits in (THREE, TWO, THREE):
            engine.suspend(NotReady("the layers move"), lost=False).result(PATIENCE_S)
            assert engine.suspended is not None
            engine.resume(MortalRing(tiny, splits)).result(PATIENCE_S)
        assert [collect(one) for one in asked] == undisturbed
        assert {one.recoveries for one in asked} == {0}


def test_requests_can_be_cancelled_and_submitted_while_stages_are_away(
    tiny: Path, undisturbed: list[list[int]]
) -> None:
    with mortal_engine(tiny) as engine:
        asked = ask_all(engine, MortalRing(tiny, TWO, 6))
        eventually("it is suspended", lambda: engine.suspended is LOST)
        engine.cancel(asked[0])
        late = engine.submit(PROMPTS[1], GREEDY, owner="late")
        cancelled = list(iter(lambda: asked[0].events.get(timeout=PATIENCE_S), "cancelled"))
        assert all(isinstance(event, int) for event in cancelled)
        engine.resume(MortalRing(tiny, TWO)).result(PATIENCE_S)
        assert collect(late) == undisturbed[1]
        assert [collect(one) for one in asked[1:]] == undisturbed[1:]


class PoisonedRing(MortalRing):
    """A ring that is lost by any step of a sequence of ``POISON`` positions."""

    def send(self, step: Send | SendBatch) -> None:
        super().send(step)
        if isinstance(step, Send) and step.capacity == POISON:
            self._steps = 0


def test_a_request_that_is_under_way_whenever_stages_fail_is_given_up_and_its_neighbours_live(
    tiny: Path, undisturbed: list[list[int]]
) -> None:
    with mortal_engine(tiny) as engine:
        engine.suspend(NotReady("not yet"), lost=False).result(PATIENCE_S)
        asked = submit_all(engine)
        poison = engine.submit([31, 32, 33], GenerateOptions(POISON - 3), owner="poison")
        for _ in range(MAX_RECOVERIES + 1):
            engine.resume(PoisonedRing(tiny, TWO)).result(PATIENCE_S)
            eventually("it is suspended", lambda: engine.suspended is LOST)
        with pytest.raises(PoisonedRequest, match=r"under way each of the 3 times .* stage 1 is gone"):
            collect(poison)
        engine.resume(PoisonedRing(tiny, TWO)).result(PATIENCE_S)
        assert [collect(one) for one in asked] == undisturbed


def test_requests_end_with_the_reason_if_nothing_replaces_the_stages(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspension, "RECOVERY_S", 0.0)
    with mortal_engine(tiny, 6) as engine:
        asked = submit_all(engine)
        for one in asked:
            with pytest.raises(StageLost, match="stage 1 is gone; no other pipeline was ready"):
                collect(one)
        assert engine.lost is None


def test_requests_can_be_ended_while_stages_are_away_and_later_ones_live(
    tiny: Path, undisturbed: list[list[int]]
) -> None:
    with mortal_engine(tiny) as engine:
        asked = ask_all(engine, MortalRing(tiny, TWO, 6))
        eventually("it is suspended", lambda: engine.suspended is LOST)
        engine.end_requests(EdgeppError("the nodes that are left cannot hold the model"))
        for one in asked:
            with pytest.raises(EdgeppError, match="cannot hold the model"):
                collect(one)
        engine.resume(MortalRing(tiny, TWO)).result(PATIENCE_S)
        assert collect(engine.submit(PROMPTS[0], GREEDY)) == undisturbed[0]


def test_a_second_loss_while_suspended_changes_only_the_reason(tiny: Path, undisturbed: list[list[int]]) -> None:
    with mortal_engine(tiny) as engine:
        asked = ask_all(engine, MortalRing(tiny, TWO, 6))
        eventually("it is suspended", lambda: engine.suspended is LOST)
        engine.suspend(StageLost("stage 0 is gone"), lost=True).result(PATIENCE_S)
        assert "stage 0 is gone" in str(engine.suspended)
        engine.resume(MortalRing(tiny, TWO)).result(PATIENCE_S)
        assert [collect(one) for one in asked] == undisturbed


def test_a_silence_and_the_loss_that_follows_from_it_count_once(tiny: Path, undisturbed: list[list[int]]) -> None:
    with mortal_engine(tiny) as engine:
        asked = ask_all(engine, MortalRing(tiny, TWO, 6, SILENT))
        eventually("it is suspended", lambda: engine.suspended is SILENT)
        engine.resume(MortalRing(tiny, TWO, 6, AWAY)).result(PATIENCE_S)
        eventually("it is suspended again", lambda: engine.suspended is AWAY)
        assert max(one.recoveries for one in asked) == 1
        engine.resume(MortalRing(tiny, TWO)).result(PATIENCE_S)
        assert [collect(one) for one in asked] == undisturbed


def test_closing_a_suspended_engine_ends_everything(tiny: Path) -> None:
    engine = mortal_engine(tiny)
    asked = ask_all(engine, MortalRing(tiny, TWO, 6))
    eventually("it is suspended", lambda: engine.suspended is LOST)
    engine.close(EdgeppError("the coordinator was closed"))
    for one in asked:
        with pytest.raises(EdgeppError, match="the coordinator was closed"):
            collect(one)
    late = MortalRing(tiny, TWO)
    with pytest.raises(EdgeppError):
        engine.resume(late).result(PATIENCE_S)
