"""Every request ends, in tokens or in an error that names stage and node, in bounded time; and nobody leaks slots."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.loop import EngineLoop
from edgepp.engine.network_ring import NetworkRing
from edgepp.engine.plan_check import Expectation
from edgepp.engine.request import GenerateOptions
from edgepp.engine.ring import Ring
from edgepp.engine.stage_handshake import Endpoint
from edgepp.errors import RemoteProtocolError, StageLost
from edgepp.model.random_checkpoint import TINY
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.wire import codec
from edgepp.wire.address import Address
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages.control import Attach, Hello, Ping, Pong, Refused, Welcome
from edgepp.wire.messages.data import Echo, Forward
from edgepp.wire.transport import Link
from tests.builders.checkpoints import Checkpoints
from tests.cluster import EDGEPP, Node, chat, nodes, peers
from tests.engines import collect, greedy_tokens
from tests.waiting import PATIENCE_S, eventually

PROMPT = list(range(3, 203))


@pytest.fixture
def tiny(checkpoints: Checkpoints) -> Path:
    return checkpoints(replace(TINY, context=1 << 15))


@pytest.fixture
def pair(tiny: Path) -> Iterator[list[Node]]:
    with nodes(tiny, ["0-1", "2-3"], "--exact") as started:
        yield started


def open_engine(path: Path, started: list[Node]) -> EngineLoop:
    """A real engine over real nodes."""
    from edgepp.backend import choose
    from edgepp.backend.base import BackendOptions, EmbeddingAndHead

    def open_ring() -> tuple[Ring, EmbeddingAndHead]:
        checkpoint = Checkpoint.open(path)
        expected = Expectation("tiny", checkpoint.fingerprint, checkpoint.num_layers, checkpoint.hidden_size, True)
        ring = NetworkRing([Endpoint((Address.parse(one.address),)) for one in started], expected, "test")
        return ring, choose("auto", checkpoint).load_embedding_and_head(checkpoint, BackendOptions(exact=True))

    return EngineLoop(lambda: EngineParts(*open_ring()), eos=frozenset())


class Knocker:
    """A bare client of one node's sockets."""

    def __init__(self, one: Node) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        address = Address.parse(one.address)
        self.control = Link(self._context, address, 1 << 20)
        self.send_control(encode(Hello("test")))
        welcome = self.receive_control()
        assert isinstance(welcome, Welcome)
        self.data = Link(self._context, Address(address.host, welcome.data_port), 1 << 30)

    def send_control(self, *frames: bytes) -> None:
        assert self.control.send(frames, 5.0)

    def send_data(self, *frames: bytes) -> None:
        assert self.data.send(frames, 5.0)

    def receive_control(self) -> object:
        frames = self.control.receive(PATIENCE_S)
        assert frames is not None
        return decode(frames[0])

    def state(self) -> Pong:
        self.send_control(encode(Ping(1)))
        while not isinstance(message := self.receive_control(), Pong):
            continue
        return message

    def close(self) -> None:
        self.control.close()
        self.data.close()
        self._context.term()


@pytest.fixture
def knock() -> Iterator[Callable[[Node], Knocker]]:
    made: list[Knocker] = []

    def make(one: Node) -> Knocker:
        made.append(Knocker(one))
        return made[-1]

    yield make
    for knocker in made:
        knocker.close()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_dead_or_silent_stage_ends_the_answer_by_name(tiny: Path, pair: list[Node], victim: int, how: int) -> None:
    with open_engine(tiny, pair) as engine:
        request = engine.submit(PROMPT, GenerateOptions(max_tokens=30_000))
        assert isinstance(request.events.get(timeout=PATIENCE_S), int)
        pair[victim].stage.send_signal(how)
        with pytest.raises(StageLost) as caught:
            collect(request)
        assert f"stage {victim} (layers {['0-1', '2-3'][victim]}) on node" in str(caught.value)
        assert pair[victim].address in str(caught.value)
        late = engine.submit(PROMPT, GenerateOptions(max_tokens=5))
        with pytest.raises(StageLost):
            collect(late)
        if how == signal.SIGSTOP:
            pair[victim].stage.send_signal(signal.SIGCONT)


def test_a_stage_that_dies_while_a_prompt_is_prefilled(tiny: Path, pair: list[Node]) -> None:
    with open_engine(tiny, pair) as engine:
        pair[1].stage.send_signal(signal.SIGSTOP)
        request = engine.submit(PROMPT, GenerateOptions(max_tokens=30_000))
        eventually("it is being prefilled", lambda: engine.load.live)
        pair[1].stage.kill()
        with pytest.raises(StageLost, match=r"stage 1 \(layers 2-3\)"):
            collect(request)


def test_the_chat_command_says_which_stage_was_lost(tiny: Path, pair: list[Node]) -> None:
    command = [*EDGEPP, "chat", "-m", str(tiny), *peers(pair), "--raw", "-p", "x" * 100, "-n", "30000", "--ignore-eos"]
    with subprocess.Popen(
        [*command, "--exact"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as talking:
        assert talking.stdout is not None
        assert talking.stdout.read(1)
        pair[1].stage.kill()
        _, error = talking.communicate(timeout=PATIENCE_S)
    assert talking.returncode == 1
    assert "stage 1 (layers 2-3) on node" in error.decode()
    assert "Traceback" not in error.decode()


def test_a_coordinator_that_is_killed_leaves_no_slot_behind(
    tiny: Path, pair: list[Node], knock: Callable[[Node], Knocker]
) -> None:
    command = [*EDGEPP, "chat", "-m", str(tiny), *peers(pair), "--raw", "-p", "x" * 100, "-n", "30000", "--ignore-eos"]
    with subprocess.Popen([*command, "--exact"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as talking:
        assert talking.stdout is not None
        assert talking.stdout.read(1)
        watch = [knock(one) for one in pair]
        talking.kill()
    eventually("no sequence is left", lambda: all(one.state().sequences == 0 for one in watch))
    assert all(one.state().kv_bytes == 0 for one in watch)


def test_a_cancelled_request_gives_way_to_the_next(
    tiny: Path, pair: list[Node], knock: Callable[[Node], Knocker]
) -> None:
    watch = [knock(one) for one in pair]
    with open_engine(tiny, pair) as engine:
        request = engine.submit(PROMPT, GenerateOptions(max_tokens=30_000))
        request.events.get(timeout=PATIENCE_S)
        assert [one.state().sequences for one in watch] == [1, 1]
        pair[1].stage.suspend()
        engine.cancel(request)
        assert len(collect(request)) < 29_999
        pair[1].stage.resume()
        other = engine.submit([*reversed(PROMPT)], GenerateOptions(max_tokens=8))
        collect(other)
        assert engine.load.live == 0
        kept = len(engine._loop.core._ledger._prefixes)
        eventually("the stages hold what is kept", lambda: all(one.state().sequences == kept for one in watch))
    eventually("no sequence is left", lambda: all(one.state().sequences == 0 for one in watch))


def test_closing_the_engine_frees_everything(tiny: Path, pair: list[Node], knock: Callable[[Node], Knocker]) -> None:
    watch = [knock(one) for one in pair]
    engine = open_engine(tiny, pair)
    engine.submit(PROMPT, GenerateOptions(max_tokens=30_000)).events.get(timeout=PATIENCE_S)
    engine.close()
    eventually("no sequence is left", lambda: all(one.state().sequences == 0 for one in watch))


def test_nodes_serve_a_new_chat_after_one_was_lost(tiny: Path) -> None:
    with nodes(tiny, ["0-1", "2-3"], "--exact") as started:
        with open_engine(tiny, started) as engine:
            before = greedy_tokens(engine, PROMPT, 5)
        with open_engine(tiny, started) as engine:
            assert greedy_tokens(engine, PROMPT, 5) == before


def _numbered(header: bytes, serial: int) -> bytes:
    """The header with that serial number, where it is one of a frame."""
    try:
        message = decode(header)
    except RemoteProtocolError:
        return header
    return encode(message._replace(serial=serial)) if isinstance(message, Forward) else header


def test_hostile_bytes_are_counted_and_the_stage_lives_on(
    tiny: Path, pair: list[Node], knock: Callable[[Node], Knocker]
) -> None:
    stranger = knock(pair[0])
    before = stranger.state().dropped
    good = Forward(1, 1, 0, 0, 16, 0, 1, 1, TINY.hidden, "float32", "none", ())
    attach = Attach(1, 0, "", "", b"cstranger".hex(), "none", 0)
    stranger.send_control(encode(attach))
    hostile: list[list[bytes]] = [
        [b""],
        [b"\x93\x01"],
        [b"\xff" * 4096],
        [b"x" * 5000],
        [os.urandom(64)],
        [b"cos\nsystem\n(S'true'\ntR."],
        [encode(good)],
        [encode(good), b"\0" * (TINY.hidden * 4 - 1)],
        [encode(good), b"\0" * (TINY.hidden * 4 + 1)],
        [encode(good), b"\0" * (TINY.hidden * 4), b"\0"],
        [encode(good)] + [b""] * 9,
        [encode(good._replace(width=TINY.hidden + 1)), b"\0" * (TINY.hidden * 4 + 4)],
        [encode(Forward(1, 1, 0, 0, 16, 0, 2, 1, TINY.hidden, "float32", "none", ())), b"\0" * (TINY.hidden * 4)],
        [encode(Forward(99, 1, 0, 0, 16, 0, 1, 1, TINY.hidden, "float32", "none", ())), b"\0" * (TINY.hidden * 4)],
        [encode(Forward(1, 1, 0, 5, 16, 0, 1, 1, TINY.hidden, "float32", "none", ())), b"\0" * (TINY.hidden * 4)],
        [encode(Forward(1, 1, 0, 0, 16, 0, 1, 1, TINY.hidden, "float32", "zstd", ())), b"\0" * 64],
        [encode(good._replace(result="logits")), b"\0" * (TINY.hidden * 4)],
        [encode(Echo(1, reply=True)), b""],
        [encode(Hello("stranger"))],
    ]
    for serial, (header, *tensor) in enumerate(hostile):
        stranger.send_data(_numbered(header, serial), *tensor)
    eventually("all are counted", lambda: stranger.state().dropped >= before + len(hostile))
    assert stranger.state().dropped == before + len(hostile)
    stranger.send_control(b"\x93garbage")
    assert isinstance(next(m for _ in range(9) if isinstance(m := stranger.receive_control(), Refused)), Refused)
    answer = chat("-m", str(tiny), *peers(pair), "--raw", "-p", "hello", "-n", "5", "--exact", "--ignore-eos")
    assert answer["completion_tokens"] == 5


def test_a_capacity_beyond_the_context_is_a_fault_not_a_crash(
    tiny: Path, pair: list[Node], knock: Callable[[Node], Knocker]
) -> None:
    stranger = knock(pair[0])
    stranger.send_control(encode(Attach(1, 0, "", "", b"cstranger".hex(), "none", 0)))
    stranger.receive_control()
    frame = Forward(1, 1, 0, 0, 1 << 40, 0, 1, 1, TINY.hidden, "float32", "none", ())
    tensor = b"\0" * (TINY.hidden * 4)
    stranger.send_data(encode(frame._replace(checksum=codec.checksum([tensor]))), tensor)
    assert type(stranger.receive_control()).__name__ == "Fault"
    assert stranger.state().sequences == 0
