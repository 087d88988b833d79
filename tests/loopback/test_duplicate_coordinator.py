"""The search for a copy of a coordinator: only a live process that proves its key keeps a coordinator from serving."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq
from zeroconf import Zeroconf

from edgepp.cluster.discovery import mdns_responder
from edgepp.cluster.discovery.mdns import Announcer
from edgepp.cluster.identity import Identity, load_identity, new_cluster, node_id
from edgepp.coordinator import duplicate_coordinator
from edgepp.coordinator.duplicate_coordinator import DuplicateSearch
from edgepp.errors import UsageError
from edgepp.wire.address import Address
from edgepp.wire.message_codec import encode, encode_payload
from edgepp.wire.messages import MAX_PAYLOAD_BYTES
from edgepp.wire.messages.clients import Reply
from edgepp.wire.security import Gate, KeyPair
from edgepp.wire.transport import Listener
from tests.waiting import PATIENCE_S


@contextmanager
def answering(identity: Identity) -> Iterator[int]:
    """A process's port that proves the key of ``identity``, and answers its owner."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context, lambda _host, _why: None)
    gate.admit([identity.keys.public])
    listener = Listener(context, Address("*", 0), MAX_PAYLOAD_BYTES, identity.keys)
    ended = threading.Event()

    def answer() -> None:
        while not ended.is_set():
            if listener.socket.poll(20) and (received := listener.receive()) is not None:
                listener.send(received[0].route, [encode(Reply(0)), encode_payload({})])
        listener.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield listener.address.port
    finally:
        ended.set()
        thread.join()
        gate.close()
        context.term()


@contextmanager
def nobody(_identity: Identity) -> Iterator[int]:
    """A port that nobody listens on any more."""
    with answering(_identity) as port:
        pass
    yield port


@pytest.mark.parametrize("who", ["a copy", "another key", "nobody"])
def test_only_a_proof_of_the_key_is_a_copy(monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    monkeypatch.setattr(mdns_responder, "_open_zeroconf", lambda: Zeroconf(["127.0.0.1"]))
    monkeypatch.setattr(duplicate_coordinator, "_DISCOVER_S", PATIENCE_S)  # it ends once the announcement is heard
    monkeypatch.setattr(duplicate_coordinator, "_CONNECT_S", PATIENCE_S if who == "a copy" else 1.0)
    own = load_identity()
    cluster = new_cluster(own)
    keys = KeyPair.generate()
    there = own if who == "a copy" else Identity(node_id(keys.public), "other", keys)
    with (nobody if who == "nobody" else answering)(there) as port:
        announcer = Announcer(cluster.id, own.node, "mini", port)
        search = DuplicateSearch(own, cluster)
        try:
            if who == "a copy":
                with pytest.raises(UsageError, match=rf"another machine, at .*:{port}, already serves this cluster"):
                    search.check()
            else:
                search.check()
        finally:
            search.close()
            announcer.close()


def test_a_search_that_is_given_up_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns_responder, "_open_zeroconf", lambda: Zeroconf(["127.0.0.1"]))
    monkeypatch.setattr(duplicate_coordinator, "_DISCOVER_S", 10 * PATIENCE_S)  # the test would run into its limit
    own = load_identity()
    DuplicateSearch(own, new_cluster(own)).close()
