"""One behaviour for both rings: in this process, and over sockets to a real stage process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edgepp.backend import choose
from edgepp.backend.base import BackendOptions
from edgepp.engine.network import NetworkRing
from edgepp.engine.peers import Endpoint, Expectation
from edgepp.engine.ring import Failed, LocalRing, Returned, Ring, RingEvent, Send, StageInfo
from edgepp.layers import split_evenly
from edgepp.model.checkpoint import Array, Checkpoint
from edgepp.model.random import TINY, make_checkpoint
from edgepp.wire.transport import Address
from tests.cluster import nodes


def _local(checkpoint: Checkpoint) -> Ring:
    stages = []
    for index, layers in enumerate(split_evenly(checkpoint.num_layers, 2)):
        backend = choose("onnx", checkpoint)
        model = backend.load_stage(checkpoint, layers, BackendOptions(exact=True))
        info = StageInfo(index, layers, "here", "", 0, "onnx", "cpu", model.chunk, checkpoint.context, 0.0, 0.0)
        stages.append((info, model))
    return LocalRing(stages)


@pytest.fixture(params=["local", "network"])
def ring(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ring]:
    path = make_checkpoint(tmp_path / "tiny", TINY)
    checkpoint = Checkpoint.open(path)
    with ExitStack() as stack:
        if request.param == "local":
            made = _local(checkpoint)
        else:
            started = stack.enter_context(nodes(path, ["0-1", "2-3"], "--exact", "--backend", "onnx"))
            expected = Expectation("tiny", checkpoint.fingerprint, checkpoint.num_layers, checkpoint.hidden_size, True)
            made = NetworkRing([Endpoint((Address.parse(one.address),)) for one in started], expected, "test")
        stack.callback(made.close)
        yield made


def _hidden(tokens: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((tokens, TINY.hidden)).astype(np.float32)


def _events(ring: Ring, count: int) -> list[RingEvent]:
    events: list[RingEvent] = []
    for _ in range(200):
        events += ring.poll(0.1)
        if len(events) >= count:
            break
    return events


def _returned(ring: Ring, count: int = 1) -> list[Returned]:
    events = _events(ring, count)
    assert all(isinstance(event, Returned) for event in events), events
    return [event for event in events if isinstance(event, Returned)]


def test_steps_come_back_in_order_with_what_was_wanted(ring: Ring) -> None:
    hidden = _hidden(12)
    ring.send(Send(1, 0, 64, 0, hidden[:5]))
    ring.send(Send(2, 0, 64, 3, hidden[:4]))
    ring.send(Send(1, 5, 64, 1, hidden[5:]))
    events = _returned(ring, 3)
    assert [(event.sequence, event.end, len(event.hidden)) for event in events] == [(1, 5, 0), (2, 4, 3), (1, 12, 1)]
    for event in events:
        assert len(event.compute_s) == 2
        assert event.ring_s >= sum(event.compute_s) * 0.9


def test_an_earlier_position_truncates_first(ring: Ring) -> None:
    prompt, other = _hidden(10), _hidden(6, seed=1)
    ring.send(Send(1, 0, 64, 1, prompt))
    ring.send(Send(1, 4, 64, 6, other))
    ring.send(Send(2, 0, 64, 0, prompt[:4]))
    ring.send(Send(2, 4, 64, 6, other))
    events = _returned(ring, 4)
    np.testing.assert_allclose(events[1].hidden, events[3].hidden, rtol=1e-5, atol=1e-5)


def test_a_gap_fails_that_sequence_only(ring: Ring) -> None:
    ring.send(Send(1, 0, 64, 1, _hidden(3)))
    ring.send(Send(2, 0, 64, 1, _hidden(3)))
    _returned(ring, 2)
    ring.send(Send(1, 7, 64, 1, _hidden(1)))
    (failed,) = _events(ring, 1)
    assert isinstance(failed, Failed)
    assert failed.sequence == 1
    assert "stage 0 (layers 0-1) on node" in str(failed.error)
    assert "positions 3 to 6 of the sequence never arrived" in str(failed.error)
    ring.send(Send(2, 3, 64, 1, _hidden(1)))
    assert _returned(ring)[0].sequence == 2


def test_a_step_beyond_the_capacity_fails(ring: Ring) -> None:
    ring.send(Send(1, 0, 4, 1, _hidden(5)))
    (failed,) = _events(ring, 1)
    assert isinstance(failed, Failed)
    assert failed.sequence == 1


def test_a_freed_sequence_comes_to_nothing(ring: Ring) -> None:
    ring.send(Send(1, 0, 64, 1, _hidden(3)))
    _returned(ring)
    ring.free(1)
    ring.send(Send(1, 3, 64, 1, _hidden(1)))
    ring.send(Send(2, 0, 64, 1, _hidden(3)))
    assert [event.sequence for event in _returned(ring)] == [2]
