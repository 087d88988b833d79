"""One behaviour for both rings: in this process, and over sockets to a real stage process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepp.backend.base import BackendOptions
from edgepp.child_process import python_command
from edgepp.engine.local_ring import LocalRing
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.plan_check import Expectation
from edgepp.engine.ring import Failed, Returned, Ring, RingEvent, Send, SendBatch
from edgepp.engine.stage_handshake import Endpoint
from edgepp.layer_range import LayerRange, split_evenly
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.node import stage_handle
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageSettings
from edgepp.wire.address import Address
from edgepp.wire.field_types import MAX_TOKENS
from edgepp.wire.messages import MAX_HEADER_BYTES
from tests.builders.stages import stage_info
from tests.cluster import nodes
from tests.live_ranks import stage_model
from tests.waiting import eventually


def _local(checkpoint: Checkpoint, ranks: tuple[int, ...], owned: ExitStack) -> Ring:
    stages = []
    for index, layers in enumerate(split_evenly(checkpoint.num_layers, 2)):
        model = owned.enter_context(stage_model(checkpoint, layers, "onnx", BackendOptions(exact=True), ranks))
        info = stage_info(index=index, layers=layers, chunk=model.chunk, context=checkpoint.context)
        stages.append((info, model))
    return LocalRing(stages)


@pytest.fixture(params=["local", "local groups", "network"])
def ring(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ring]:
    path = make_checkpoint(tmp_path / "tiny", TINY)
    checkpoint = Checkpoint.open(path)
    with ExitStack() as stack:
        if request.param != "network":
            made = _local(checkpoint, (1, 1) if request.param == "local groups" else (1,), stack)
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
    eventually(f"{count} events", lambda: len(events) >= count or events.extend(ring.poll(0.1)))
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
    came = [(event.sequences, event.positions, len(event.rows)) for event in events]
    assert came == [((1,), 5, 0), ((2,), 4, 3), ((1,), 7, 1)]
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
    np.testing.assert_allclose(events[1].rows, events[3].rows, rtol=1e-5, atol=1e-5)


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
    assert _returned(ring)[0].sequences == (2,)


def test_a_sequence_begins_with_another_ones_positions(ring: Ring) -> None:
    prompt, other = _hidden(10), _hidden(6, seed=1)
    ring.send(Send(1, 0, 64, 0, prompt))
    ring.send(Send(2, 4, 64, 6, other, source=1))
    ring.send(Send(1, 10, 64, 1, other[:1]))
    ring.send(Send(3, 0, 64, 0, prompt[:4]))
    ring.send(Send(3, 4, 64, 6, other))
    events = _returned(ring, 5)
    np.testing.assert_allclose(events[1].rows, events[4].rows, rtol=1e-5, atol=1e-5)


def test_a_sequence_whose_source_is_gone_fails_and_no_other(ring: Ring) -> None:
    ring.send(Send(1, 0, 64, 0, _hidden(10)))
    ring.send(Send(2, 4, 64, 1, _hidden(1), source=7))
    ring.send(Send(1, 10, 64, 1, _hidden(1)))
    events = _events(ring, 3)
    assert [event.sequence for event in events if isinstance(event, Failed)] == [2]
    assert [event.sequences for event in events if isinstance(event, Returned)] == [(1,), (1,)]


def test_a_sequence_may_be_given_more_room(ring: Ring) -> None:
    ring.send(Send(1, 0, 4, 1, _hidden(4)))
    ring.send(Send(1, 4, 9, 1, _hidden(5)))
    assert [event.positions for event in _returned(ring, 2)] == [4, 5]


def test_a_step_beyond_the_capacity_fails(ring: Ring) -> None:
    ring.send(Send(1, 0, 4, 1, _hidden(5)))
    (failed,) = _events(ring, 1)
    assert isinstance(failed, Failed)
    assert failed.sequence == 1


def _held(ring: Ring) -> set[int]:
    """How many sequences each stage holds, as last heard; to wait for, since a step might overtake what frees one."""
    assert ring.poll(0.05) == []
    return {stats.sequences for stats in ring.stage_stats()}


def test_stages_tell_what_came_over_their_links(ring: Ring) -> None:
    def told(frames: int) -> bool:
        assert ring.poll(0.05) == []
        return isinstance(ring, LocalRing) or all(one.frames == frames and one.sent_bytes for one in ring.stage_stats())

    eventually("both stages tell of the probes", lambda: told(0))
    probes = ring.stage_stats()
    for step in range(8):
        ring.send(Send(1, step * 4, 64, 1, _hidden(4)))
    _returned(ring, 8)
    eventually("both stages tell of the steps", lambda: told(8))
    (first, second), row_bytes = ring.stage_stats(), TINY.hidden * 4
    if isinstance(ring, LocalRing):
        assert (first.received_bytes, first.sent_bytes, second.received_bytes, second.sent_bytes) == (0, 0, 0, 0)
        return
    came = first.received_bytes - probes[0].received_bytes
    between = second.received_bytes - probes[1].received_bytes
    back = second.sent_bytes - probes[1].sent_bytes
    assert first.sent_bytes - probes[0].sent_bytes == between
    assert 0.5 * 32 * row_bytes < between <= 32 * row_bytes + 8 * MAX_HEADER_BYTES
    assert 0.5 * 32 * row_bytes < came <= 32 * row_bytes + 8 * MAX_HEADER_BYTES
    assert 0.5 * 8 * row_bytes < back <= 8 * row_bytes + 8 * MAX_HEADER_BYTES  # one row of each step
    assert (first.reconnects, second.reconnects) == (0, 0)
    assert min(first.queue_s, second.queue_s) >= 0


def test_a_freed_sequence_comes_to_nothing(ring: Ring) -> None:
    ring.send(Send(1, 0, 64, 1, _hidden(3)))
    _returned(ring)
    eventually("both stages tell of it", lambda: _held(ring) == {1})
    ring.free(1)
    eventually("both have freed it", lambda: _held(ring) == {0})
    ring.send(Send(1, 3, 64, 1, _hidden(1)))
    ring.send(Send(2, 0, 64, 1, _hidden(3)))
    assert [event.sequences for event in _returned(ring)] == [(2,)]


def _opened(ring: Ring, *sequences: int) -> None:
    """Prompts of 3, 4, 5, … positions for the sequences."""
    for tokens, sequence in enumerate(sequences, 3):
        ring.send(Send(sequence, 0, 64, 1, _hidden(tokens, seed=tokens)))
    _returned(ring, len(sequences))


def test_a_batch_gives_each_sequence_what_it_gets_alone(ring: Ring) -> None:
    _opened(ring, 1, 2, 3)
    _opened(ring, 4, 5, 6)
    rows = _hidden(3, seed=9)
    ring.send(SendBatch((3, 1, 2), (5, 3, 4), rows))
    for row, (sequence, position) in enumerate(((6, 5), (4, 3), (5, 4))):
        ring.send(Send(sequence, position, 64, 1, rows[row : row + 1]))
    together, *alone = _returned(ring, 4)
    assert (together.sequences, together.positions) == ((3, 1, 2), 1)
    for row, event in enumerate(alone):
        np.testing.assert_allclose(together.rows[row], event.rows[0], rtol=1e-4, atol=1e-4)


def test_who_cannot_take_part_is_left_out_of_a_batch(ring: Ring) -> None:
    _opened(ring, 1, 2, 3)
    eventually("both stages tell of them", lambda: _held(ring) == {3})
    ring.free(3)
    eventually("both have freed it", lambda: _held(ring) == {2})
    ring.send(SendBatch((1, 2, 3), (9, 4, 5), _hidden(3, seed=9)))
    events = _events(ring, 2)
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.sequence == 1
    assert "positions 3 to 8 of the sequence never arrived" in str(failed.error)
    (returned,) = [event for event in events if isinstance(event, Returned)]
    assert (returned.sequences, returned.positions, len(returned.rows)) == ((2,), 1, 1)


def test_a_full_sequence_does_not_stop_the_others(ring: Ring) -> None:
    ring.send(Send(1, 0, 3, 1, _hidden(3)))
    ring.send(Send(2, 0, 64, 1, _hidden(3)))
    _returned(ring, 2)
    ring.send(SendBatch((1, 2), (3, 3), _hidden(2)))
    events = _events(ring, 2)
    assert {event.sequence for event in events if isinstance(event, Failed)} == {1}
    assert [event.sequences for event in events if isinstance(event, Returned)] == [(2,)]


_LONG_CHUNKS = """
from edgepp.backend.onnx import stage
from edgepp.stage_process.main import main

made = stage.OnnxStage.__init__

def with_long_chunks(self, *args, **options):
    made(self, *args, **options)
    self.chunk = 3000

stage.OnnxStage.__init__ = with_long_chunks
main()
"""


def test_a_stage_with_longer_chunks_than_a_frame_carries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "tiny", replace(TINY, context=4096)))
    (tmp_path / "long_chunks.py").write_text(_LONG_CHUNKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(stage_handle, "python_command", lambda _: python_command("long_chunks"))
    settings = StageSettings(ComputePolicy(1), "onnx")
    child = stage_handle.StageProcess(settings.config(checkpoint.path, "tiny", LayerRange(0, 4), exact=True))
    with ExitStack() as stack:
        stack.callback(child.stop)
        address = child.wait_ready().address
        expected = Expectation("tiny", checkpoint.fingerprint, 4, checkpoint.hidden_size, True)
        made = NetworkRing([Endpoint((address,))], expected, "test")
        stack.callback(made.close)
        assert made.stages[0].chunk == MAX_TOKENS
        made.send(Send(1, 0, 2000, 1, _hidden(MAX_TOKENS)))
        (event,) = _events(made, 1)
        assert isinstance(event, Returned)
        assert event.positions == MAX_TOKENS
