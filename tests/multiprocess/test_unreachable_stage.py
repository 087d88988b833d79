"""A member whose node is well and whose stage cannot be used, as behind its own firewall: the others answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from edgepp.cluster.identity import Identity, node_id
from edgepp.cluster.pairing.client import join_by_code
from edgepp.wire.address import Address
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import MAX_PAYLOAD_BYTES
from edgepp.wire.messages.nodes import Enrol, Heartbeat, Leave, Load, Loaded
from edgepp.wire.security import KeyPair, Pinned
from edgepp.wire.transport import Link
from tests.builders.checkpoints import Checkpoints
from tests.cluster import Machine, serving
from tests.waiting import PATIENCE_S

FACTS = Enrol(7, "walled", "0.1.0", "127.0.0.1", 64 << 30, "onnx", "cpu", 1, 1, 0, 0, 10**12, 10**14)


@pytest.fixture
def model(checkpoints: Checkpoints) -> Path:
    return checkpoints()


@contextmanager
def walled(code: str, coordinator: str, slots: int, port: int) -> Iterator[threading.Event]:
    """A member with much memory that says it has loaded its layers, at a ``port`` without a stage; set once it has.

    It offers so many stage ``slots``.
    """
    keys, address = KeyPair.generate(), Address.parse(coordinator)
    cluster = join_by_code(code, [address], Identity(node_id(keys.public), FACTS.name, keys))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    loaded, ended = threading.Event(), threading.Event()
    facts = FACTS._replace(stage_slots=slots, memory_bytes=slots * FACTS.memory_bytes)

    def run() -> None:
        link = Link(context, address, MAX_PAYLOAD_BYTES, pinned=Pinned(keys, cluster.coordinator.key))
        link.send([encode(facts)], PATIENCE_S)
        while not ended.is_set():
            link.send([encode(Heartbeat(FACTS.incarnation, 1 << 30, time.time_ns() // 1000, 0))])
            until_s = time.monotonic() + 0.5
            while (left_s := until_s - time.monotonic()) > 0:
                frames = link.receive(left_s)
                if frames is not None and isinstance(order := decode(frames[0]), Load):
                    link.send([encode(Loaded(order.plan_id, order.slot, port, 1, "onnx", "cpu", 1, 1, 10, 10))])
                    loaded.set()
        link.send([encode(Leave(FACTS.incarnation))])
        link.close(1.0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield loaded
    finally:
        ended.set()
        thread.join()
        context.term()


@pytest.mark.parametrize(
    ("slots", "what", "told"),
    [
        (1, "nothing", "does not answer, although the node itself does; allow edgepp in that machine's firewall"),
        (64, "nothing", "does not answer, although the node itself does; allow edgepp in that machine's firewall"),
        (1, "another machine", "its key is another one"),
    ],
)
def test_a_stage_that_cannot_be_used_stops_no_cluster_that_does_without(
    model: Path, tmp_path: Path, slots: int, what: str, told: str
) -> None:
    """Where the member says that its stage is, nothing answers, or another machine: here the coordinator itself."""
    one = Machine(tmp_path, "one")
    with serving(one, model, "--exact") as (served, address):
        code = one.json("invite", "--json")["code"]
        port = 9 if what == "nothing" else Address.parse(address).port
        with walled(code, address, slots, port) as loaded:
            assert loaded.wait(PATIENCE_S)
            answer = one.json("chat", "--raw", "-p", "hello", "-n", "3", "--ignore-eos", "--json")
            assert len(answer["token_ids"]) == 3  # which the member cannot have computed
            while "cannot run its layers" not in (note := served.until("note")["text"]):
                continue
    assert note.startswith("walled cannot run its layers: stage ")
    assert told in note
