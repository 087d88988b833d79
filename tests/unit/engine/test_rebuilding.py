"""The embeddings that a lost first stage gets again: in chunks, and what two sequences share once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgepp.engine import rebuilding
from edgepp.engine.rebuild_plan import Holding
from edgepp.engine.rebuilding import Rebuilding
from edgepp.engine.ring import Failed, SequenceRebuilt
from edgepp.engine.suspended_sequences import SuspendedSequence
from edgepp.errors import StageFault
from edgepp.layer_range import LayerRange

CHUNK = 40
PROMPT = list(range(100, 200))
STAGES = (LayerRange(0, 1), LayerRange(1, 2))


class FakeRing:
    """Two stages, of which the first has lost what the second one holds; notes the embeddings that it is sent."""

    refill_rows = CHUNK

    def __init__(self, positions: dict[int, int]) -> None:
        held = [Holding(1, "kv", STAGES[1], positions)]
        self.orders = SimpleNamespace(identity=None, holdings=held, holdings_outside=lambda *_: [])
        self.stages = [SimpleNamespace(layers=layers, rewinds=True, prefill_s=0.0) for layers in STAGES]
        self.sent: list[tuple[int, int, int, int]] = []

    def refill(self, sequence: int, position: int, capacity: int, hidden: Any, until: int, source: int = 0) -> None:
        assert (capacity, until) == (512, 0)
        self.sent.append((sequence, position, len(hidden), source))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> tuple[Rebuilding, FakeRing]:
    """The rebuild of two sequences that share 100 tokens, the first of 120 positions and the second of 110."""
    monkeypatch.setattr(rebuilding, "NetworkRing", FakeRing)
    monkeypatch.setattr(rebuilding, "STALLED_S", 1e6)
    ring: Any = FakeRing({1: 120, 2: 110})
    suspended = [
        SuspendedSequence(1, [*PROMPT, *range(30)], 120, 512, request=1),
        SuspendedSequence(2, [*PROMPT, *range(50, 80)], 110, 512, request=2),
    ]
    return Rebuilding(ring, ring, suspended, lambda ids, _: np.zeros((len(ids), 4), np.float32)), ring


def test_a_sequence_begins_as_a_copy_once_the_shared_embeddings_were_sent(begun: tuple[Rebuilding, FakeRing]) -> None:
    made, ring = begun
    assert ring.sent == [(1, 0, CHUNK, 0)]
    made.take(SequenceRebuilt(0, 1, 40))
    made.take(SequenceRebuilt(0, 1, 80))
    assert ring.sent[1:] == [(1, 40, CHUNK, 0), (1, 80, CHUNK, 0), (2, 100, 10, 1)]
    assert not made.done
    made.take(SequenceRebuilt(0, 1, 120))
    made.take(SequenceRebuilt(0, 2, 110))
    assert made.done
    assert dict(made.lengths) == {1: 120, 2: 110}


def test_a_sequence_is_sent_whole_where_the_other_one_failed_before(begun: tuple[Rebuilding, FakeRing]) -> None:
    made, ring = begun
    made.take(Failed(1, StageFault("memory is short")))
    assert ring.sent[1:] == [(2, 0, CHUNK, 0)]
    for length in (40, 80, 110):
        made.take(SequenceRebuilt(0, 2, length))
    assert made.done
    assert dict(made.lengths) == {2: 110}
    assert made.regained(1).prefilled == 120


def test_what_nobody_waits_for_is_no_progress(
    begun: tuple[Rebuilding, FakeRing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that says again and again that it has rebuilt something holds up the other requests for a time only."""
    made, _ = begun
    made.take(SequenceRebuilt(0, 1, 40))
    monkeypatch.setattr(made, "_patience_s", 8.0)
    monkeypatch.setattr(made, "_progress_s", began_s := made._progress_s - 9)
    for lie in (SequenceRebuilt(0, 1, 40), SequenceRebuilt(0, 99, 1 << 40), SequenceRebuilt(1, 1, 120)):
        made.take(lie)
        assert made._progress_s == began_s
    assert made.done
    assert dict(made.lengths) == {}


def test_a_stage_that_calls_itself_slow_is_not_waited_for_any_longer_than_requests_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rebuilding, "NetworkRing", FakeRing)
    ring: Any = FakeRing({1: 120})
    ring.stages[0].prefill_s = 1e9
    suspended = [SuspendedSequence(1, [*PROMPT, *range(30)], 120, 512, request=1)]
    made = Rebuilding(ring, ring, suspended, lambda ids, _: np.zeros((len(ids), 4), np.float32))
    assert made._patience_s == rebuilding.RECOVERY_S
