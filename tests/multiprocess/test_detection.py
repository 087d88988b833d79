"""Which stages are suspect or lost, over real stage processes: killed, stopped for a while, cut off for a moment."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edgepp.backend import choose
from edgepp.backend.base import BackendOptions, EmbeddingAndHead
from edgepp.engine import stage_watch
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.loop import EngineLoop
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.plan_check import Expectation
from edgepp.engine.request import GenerateOptions
from edgepp.engine.ring import Ring
from edgepp.engine.stage_handshake import Endpoint
from edgepp.engine.stage_watch import SUSPECT_S
from edgepp.errors import StageLost
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.wire.address import Address
from tests.builders.checkpoints import Checkpoints
from tests.cluster import Node, nodes
from tests.engines import collect, greedy_tokens, local_engine
from tests.relay import Relay
from tests.waiting import PATIENCE_S, eventually

PROMPT, TOKENS = [3, 4, 5, 6], 200


@pytest.fixture(scope="module")
def tiny(checkpoints: Checkpoints) -> Path:
    return checkpoints(TINY)


@pytest.fixture(scope="module")
def expected(tiny: Path) -> list[int]:
    with local_engine(tiny, [LayerRange(0, 4)], ["auto"]) as engine:
        return greedy_tokens(engine, PROMPT, TOKENS)


@pytest.fixture
def pair(tiny: Path) -> Iterator[list[Node]]:
    with nodes(tiny, ["0-1", "2-3"], "--exact") as started:
        yield started


def open_engine(path: Path, addresses: list[Address]) -> EngineLoop:
    """An engine that waits for another ring when it loses a stage."""

    def open_ring() -> tuple[Ring, EmbeddingAndHead]:
        checkpoint = Checkpoint.open(path)
        wanted = Expectation("tiny", checkpoint.fingerprint, checkpoint.num_layers, checkpoint.hidden_size, True)
        ring = NetworkRing([Endpoint((address,)) for address in addresses], wanted, "test")
        return ring, choose("auto", checkpoint).load_embedding_and_head(checkpoint, BackendOptions(exact=True))

    return EngineLoop(lambda: EngineParts(*open_ring()), eos=frozenset(), recovers=True)


def addresses(pair: list[Node]) -> list[Address]:
    return [Address.parse(one.address) for one in pair]


@pytest.mark.parametrize("asked", [True, False], ids=["busy", "idle"])
def test_a_killed_stage_is_gone_as_soon_as_nothing_listens_at_its_port(
    tiny: Path, pair: list[Node], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_watch, "LOST_S", 1e6)  # its silence is not what tells
    with open_engine(tiny, addresses(pair)) as engine:
        if asked:
            request = engine.submit(PROMPT, GenerateOptions(max_tokens=TOKENS))
            assert isinstance(request.events.get(timeout=PATIENCE_S), int)
        pair[1].stage.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        loss = eventually("it is gone", lambda: engine.suspended)
        print(f"\n  measured: gone {time.monotonic() - killed_s:.3f} s after the kill")  # noqa: T201
        assert isinstance(loss, StageLost)
        assert loss.gone == 1
        assert "stage 1 (layers 2-3) on node" in str(loss)


def test_a_stage_that_stops_for_a_while_is_suspect_and_not_lost(
    tiny: Path, pair: list[Node], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_watch, "LOST_S", 1e6)
    with open_engine(tiny, addresses(pair)) as engine:
        pair[1].stage.send_signal(signal.SIGSTOP)  # with no step in the ring: the connections break, and lose it
        try:
            eventually("it is suspect", lambda: engine.stage_stats[1].silent_s > SUSPECT_S)
            assert engine.stage_stats[0].silent_s < engine.stage_stats[1].silent_s
        finally:
            pair[1].stage.send_signal(signal.SIGCONT)
        eventually("it answers again", lambda: engine.stage_stats[1].silent_s < SUSPECT_S)
        assert greedy_tokens(engine, PROMPT, TOKENS) == expected
        assert engine.suspended is None


def test_a_stage_that_stays_silent_is_lost_as_hanging(tiny: Path, pair: list[Node]) -> None:
    with open_engine(tiny, addresses(pair)) as engine:
        pair[0].stage.send_signal(signal.SIGSTOP)
        try:
            loss = eventually("it is lost", lambda: engine.suspended)
        finally:
            pair[0].stage.send_signal(signal.SIGCONT)
        assert isinstance(loss, StageLost)
        assert (loss.hanging, loss.gone) == (0, None)


def test_a_connection_that_breaks_and_comes_back_is_no_loss(tiny: Path, pair: list[Node], expected: list[int]) -> None:
    first, second = addresses(pair)
    relay = Relay(second)
    relay.start()
    with closing(relay), open_engine(tiny, [first, relay.address]) as engine:
        request = engine.submit(PROMPT, GenerateOptions(max_tokens=TOKENS))
        for times in range(1, 4):
            relay.break_connections()
            eventually("it is connected again", lambda n=times: engine.stage_stats[1].reconnects == n)  # type: ignore[misc]
        assert collect(request) == expected
        assert engine.suspended is None
