"""Guesses over real sockets: of a drafting process that works, and of ones that are silent, foreign, lying or gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import zmq

from edgepp.engine.draft_client import DraftClient, Vocabulary
from edgepp.engine.drafts import LayeredDraft
from edgepp.engine.prompt_lookup import OwnerTexts
from edgepp.engine.remote_draft import RemoteDraft
from edgepp.engine.stage_handshake import Endpoint
from edgepp.errors import PairingError, UsageError
from edgepp.layer_range import LayerRange
from edgepp.stage_process.draft_server import DraftServer
from edgepp.stage_process.drafting import Drafting
from edgepp.wire.address import Address
from edgepp.wire.mailbox import Mailbox
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import MAX_CONTROL_FRAME_BYTES
from edgepp.wire.messages.control import FrameLost, Hello, Refused
from edgepp.wire.messages.drafts import Drafter, Guessed, Read
from edgepp.wire.security import Gate, KeyPair, pinned
from edgepp.wire.transport import Link, Listener
from tests.builders.drafting import SmallModel
from tests.engines import greedy_tokens, local_engine
from tests.waiting import PATIENCE_S, eventually

HERE = Address("127.0.0.1", 0)
DRAFTER = Drafter("mini", 7, "tiny", "digest", 512, "onnx", "cpu", 100)
TEXT = [5, 9, 2, 7]


class Served:
    """A drafting process's loop in a thread of the test."""

    def __init__(self, folder: Path, drafter: Drafter = DRAFTER, port: int = 0) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        listener = Listener(self._context, Address("127.0.0.1", port), MAX_CONTROL_FRAME_BYTES)
        self.address = listener.address
        small = SmallModel(folder)
        self._server = DraftServer(listener, Drafting(small.stage, small.ends, small.context), drafter)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()

    def close(self) -> None:
        self._server.inbox.put(None)
        self._thread.join()
        self._server.close()
        self._context.term()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def serving(folder: Path, drafter: Drafter = DRAFTER) -> Iterator[Endpoint]:
    with Served(folder, drafter) as served:
        yield Endpoint((served.address,))


@contextmanager
def listening() -> Iterator[Listener]:
    """The socket of a process that does what the test says."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    listener = Listener(context, HERE, MAX_CONTROL_FRAME_BYTES)
    try:
        yield listener
    finally:
        listener.close()
        context.term()


@pytest.fixture
def ready() -> Iterator[Mailbox[None]]:
    mailbox: Mailbox[None] = Mailbox()
    yield mailbox
    mailbox.close()


@pytest.fixture
def client(ready: Mailbox[None]) -> Iterator[DraftClient]:
    one = DraftClient("here", None, Vocabulary(lambda: "digest", 256), "large", ready)
    yield one
    one.close()


def guesses(draft: RemoteDraft, ids: list[int], count: int) -> list[int]:
    """The first ``count`` guesses behind ``ids``, once they have arrived."""
    return eventually("guesses", lambda: found if len(found := list(draft.propose(ids, count))) == count else None)


def test_guesses_arrive_and_wake_the_engine(tiny: Path, client: DraftClient, ready: Mailbox[None]) -> None:
    expected = SmallModel(tiny).continuation(TEXT, 6)
    with serving(tiny) as endpoint:
        client.use(endpoint).result(PATIENCE_S)
        assert (client.drafter, client.problem) == (DRAFTER, "")
        draft = client.begin()
        assert list(draft.propose(TEXT, 2)) == []
        eventually("the engine is woken", ready.drain)
        assert guesses(draft, TEXT, 4) == expected[:4]
        assert guesses(draft, [*TEXT, *expected[:2]], 4) == expected[2:]
        draft.close()


def test_an_engine_answers_the_same_with_a_small_model_that_is_the_model_itself(
    tiny: Path, client: DraftClient
) -> None:
    prompt = [3 + n * 7 % 200 for n in range(150)]
    split = [LayerRange(0, 2), LayerRange(2, 4)]
    with local_engine(tiny, split, ["onnx"]) as engine:
        expected = greedy_tokens(engine, prompt, 40)
    with serving(tiny) as endpoint:
        client.use(endpoint).result(PATIENCE_S)
        texts = OwnerTexts()
        with local_engine(
            tiny, split, ["onnx"], draft=lambda owner: LayeredDraft(texts.begin(owner), client.begin())
        ) as engine:
            assert greedy_tokens(engine, prompt, 40) == expected


def test_a_process_with_other_tokens_is_refused(tiny: Path, client: DraftClient) -> None:
    with serving(tiny, DRAFTER._replace(vocabulary="another")) as endpoint:
        with pytest.raises(UsageError, match="tiny cannot guess for large: their tokens differ"):
            client.use(endpoint).result(PATIENCE_S)
        assert not client.begin().propose(TEXT, 1)
        assert "tokens differ" in client.problem


def test_another_kind_of_process_is_refused(client: DraftClient) -> None:
    with listening() as listener:
        found = client.use(Endpoint((listener.address,)))
        sender, _ = eventually("a greeting", listener.receive)
        listener.send(sender.route, [encode(Refused("no"))])
        with pytest.raises(Exception, match="does not guess: no"):
            found.result(PATIENCE_S)


def test_a_silent_process_costs_nothing_but_its_guesses(client: DraftClient) -> None:
    with listening() as listener:
        found = client.use(Endpoint((listener.address,)))
        sender, _ = eventually("a greeting", listener.receive)
        listener.send(sender.route, [encode(DRAFTER)])
        found.result(PATIENCE_S)
        draft = client.begin()
        for n in range(2000):  # nobody reads
            assert not draft.propose([*range(n % 200), 1], 4)
        draft.close()


def test_a_liar_is_left_alone_and_its_guesses_are_guesses_only(client: DraftClient) -> None:
    with listening() as listener:
        found = client.use(Endpoint((listener.address,)))
        sender, _ = eventually("a greeting", listener.receive)
        listener.send(sender.route, [encode(DRAFTER)])
        found.result(PATIENCE_S)
        draft = client.begin()
        draft.propose(TEXT, 4)
        _, frames = eventually("a text", listener.receive)
        read = decode(frames[0])
        assert isinstance(read, Read)
        for n in range(3000):  # a flood for nobody
            listener.send(sender.route, [encode(Guessed(n, 0, 0, tuple(range(200))))])
        right = encode(Guessed(read.sequence, read.number, 4, (1, 2, 999, 4)))
        eventually("there is room for it", lambda: listener.send(sender.route, [right]))
        eventually("a guess", lambda: list(draft.propose(TEXT, 4)) == [1, 2])
        eventually("there is room for it", lambda: listener.send(sender.route, [encode(FrameLost(1, 0))]))
        eventually("a broken protocol", lambda: "broke the protocol" in client.problem)
        assert not draft.propose(TEXT, 4)


def test_a_process_that_dies_and_comes_back_guesses_again(tiny: Path, client: DraftClient) -> None:
    expected = SmallModel(tiny).continuation(TEXT, 4)
    with Served(tiny) as served:
        client.use(Endpoint((served.address,))).result(PATIENCE_S)
        draft = client.begin()
        assert guesses(draft, TEXT, 4) == expected
    eventually("the loss is noticed", lambda: not client.connection)
    assert not draft.propose(TEXT, 4)
    with Served(tiny, port=served.address.port):
        assert guesses(draft, TEXT, 4) == expected


def test_another_process_takes_over_and_none(tiny: Path, client: DraftClient) -> None:
    expected = SmallModel(tiny).continuation(TEXT, 4)
    with ExitStack() as both:
        draft = client.begin()
        for _ in range(2):
            client.use(both.enter_context(serving(tiny))).result(PATIENCE_S)
            assert guesses(draft, TEXT, 4) == expected
        client.use(None).result(PATIENCE_S)
        assert not draft.propose(TEXT, 4)


def test_only_the_coordinator_may_send_texts(tiny: Path) -> None:
    """Another admitted node may greet the process, and a stranger is not admitted."""
    own, coordinator, guest, stranger = (KeyPair.generate() for _ in range(4))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context)
    gate.admit([coordinator.public, guest.public])
    listener = Listener(context, HERE, MAX_CONTROL_FRAME_BYTES, own)
    small = SmallModel(tiny)
    server = DraftServer(listener, Drafting(small.stage, small.ends, small.context), DRAFTER, coordinator.public)
    thread = threading.Thread(target=server.run)
    thread.start()
    link = Link(context, listener.address, MAX_CONTROL_FRAME_BYTES, pinned=pinned(guest, own.public))
    mailboxes = [Mailbox[None](), Mailbox[None]()]
    clients = [
        DraftClient("here", keys, Vocabulary(lambda: "digest", 256), "large", mailbox)
        for keys, mailbox in zip((coordinator, stranger), mailboxes, strict=True)
    ]
    endpoint = Endpoint((listener.address,), own.public)
    try:
        for message, answer in ((Hello("x"), Drafter), (Read(1, 0, 0, (1, 2), 4), Refused)):
            assert link.send([encode(message)], PATIENCE_S)
            frames = link.receive(PATIENCE_S)
            assert frames is not None
            assert isinstance(decode(frames[0]), answer)
        clients[0].use(endpoint).result(PATIENCE_S)
        assert guesses(clients[0].begin(), TEXT, 4) == small_continuation(tiny)
        with pytest.raises(PairingError):
            clients[1].use(endpoint).result(PATIENCE_S)
    finally:
        link.close()
        for one in (*clients, *mailboxes):
            one.close()
        server.inbox.put(None)
        thread.join()
        server.close()
        gate.close()
        context.term()


def small_continuation(folder: Path) -> list[int]:
    return SmallModel(folder).continuation(TEXT, 4)
