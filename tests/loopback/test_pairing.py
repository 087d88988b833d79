"""Joining with a code over real connections: a right code pairs, and three wrong guesses void the invitation."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgpack
import pytest

from edgepp.cluster.discovery.coordinator_addresses import in_turns
from edgepp.cluster.identity import Cluster, Identity, PairedNode, node_id
from edgepp.cluster.pairing import candidates, protocol
from edgepp.cluster.pairing.admission_queue import (
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_NETWORK,
    MAX_WAITING_PER_NETWORK,
    AdmissionQueue,
    ClientConnection,
)
from edgepp.cluster.pairing.client import join_by_code
from edgepp.cluster.pairing.codes import MAX_GUESSES, words
from edgepp.cluster.pairing.invitations import INVITATION_S, MAX_OPEN_INVITATIONS, PairingInvitation
from edgepp.cluster.pairing.protocol import EXCHANGE_S, Channel, Spake
from edgepp.cluster.pairing.server import PairingServer
from edgepp.errors import EdgeppError, PairingError, RemoteProtocolError, UsageError
from edgepp.wire.address import Address
from edgepp.wire.security import KeyPair
from tests.waiting import PATIENCE_S, eventually


def _identity(name: str) -> Identity:
    keys = KeyPair.generate()
    return Identity(node_id(keys.public), name, keys)


COORDINATOR, JOINER = _identity("tower"), _identity("mini")
CLUSTER = Cluster("0123456789abcdef", PairedNode.of(COORDINATOR.name, COORDINATOR.keys.public))


class Harness:
    """A pairing server on loopback whose clock the test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.paired: list[PairedNode] = []
        self.events: list[str] = []
        for _ in range(20):
            self.address = Address("127.0.0.1", random.randrange(20000, 32000))  # noqa: S311
            self.server = PairingServer(
                self.address,
                lambda: CLUSTER,
                self.paired.append,
                lambda event: self.events.append(str(event)),
                lambda: self.now_s,
            )
            try:
                self.code = self.server.invite()
            except UsageError:
                continue  # the port is another process's
            break

    @property
    def number(self) -> int:
        return int(self.code.split("-")[0])

    @property
    def wrong(self) -> str:
        number, first, second = self.code.split("-")
        return f"{number}-{first}-{next(word for word in words() if word != second)}"

    def join(self, code: str = "") -> Cluster:
        return join_by_code(code or self.code, [self.address], JOINER)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.address.host, self.address.port + 1), 10)

    def heard(self, line: str) -> None:
        eventually(line, lambda: any(line in event for event in self.events))


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    made.server.close()
    assert "pairing" not in [thread.name for thread in threading.enumerate()]


def test_the_words_are_short_and_distinct() -> None:
    assert len(set(words())) == len(words()) >= 256
    assert all(3 <= len(word) <= 8 and word.isascii() and word.islower() and word.isalpha() for word in words())
    assert len({word[:4] for word in words()}) == len(words())


def test_a_code_pairs_once(harness: Harness) -> None:
    cluster = harness.join(f" {harness.code.upper().replace('-', ' ')} ")
    assert (cluster.id, cluster.coordinator) == (CLUSTER.id, CLUSTER.coordinator)
    assert cluster.addresses == (str(harness.address),)
    assert harness.paired == [PairedNode(JOINER.node, "mini", JOINER.keys.public)]
    harness.heard(f"mini at 127.0.0.1 is paired, by invitation {harness.number}")
    assert harness.server.numbers() == ()


def test_the_server_listens_only_while_an_invitation_is_open(harness: Harness) -> None:
    harness.join()
    eventually("no thread is left", lambda: not any(one.is_alive() for one in harness.server._threads))
    with pytest.raises(PairingError, match=f"nobody takes invitation {harness.number}"):
        harness.join()
    harness.code = harness.server.invite()
    assert harness.join().id == CLUSTER.id


def test_a_used_code_is_refused_as_used(harness: Harness) -> None:
    used, harness.code = harness.code, harness.server.invite()
    harness.join(used)
    with pytest.raises(PairingError, match="used already"):
        harness.join(used)
    harness.heard(f"127.0.0.1 asked for invitation {used.split('-')[0]}, which is not open")
    assert len(harness.paired) == 1


def test_three_wrong_guesses_void_an_invitation(harness: Harness) -> None:
    other = harness.server.invite()
    for left in (2, 1):
        with pytest.raises(PairingError, match=f"the code is wrong .{left} of {MAX_GUESSES} guesses left"):
            harness.join(harness.wrong)
    with pytest.raises(PairingError, match=f"invitation {harness.number} is now void"):
        harness.join(harness.wrong)
    with pytest.raises(PairingError, match="is void after too many wrong guesses"):
        harness.join()
    harness.heard(f"127.0.0.1 guessed wrong (1 of 3) for invitation {harness.number}")
    harness.heard(f"invitation {harness.number} is void after 3 wrong guesses")
    assert harness.paired == []
    assert harness.join(other).id == CLUSTER.id


def test_guesses_made_at_once_are_all_counted(harness: Harness) -> None:
    harness.server.invite()
    connections = [harness.connect() for _ in range(4)]
    channels = [Channel(connection) for connection in connections]
    seals = []
    for channel in channels:
        spake = Spake("client", harness.wrong)
        channel.send("join", harness.number, spake.element)
        answer = channel.receive()
        assert answer is not None
        seals.append(spake.seal(answer[1], channel.transcript.digest()))
    for channel, seal in zip(channels, seals, strict=True):
        channel.send("prove", seal.close("client", ("x", JOINER.keys.public)))
    answers = sorted(str(channel.receive()) for channel in channels)
    assert answers == [
        "('refuse', 'void', 0)",
        "('refuse', 'wrong', 0)",
        "('refuse', 'wrong', 1)",
        "('refuse', 'wrong', 2)",
    ]
    for connection in connections:
        connection.close()


def test_an_exchange_that_ends_early_costs_no_guess(harness: Harness) -> None:
    for _ in range(MAX_GUESSES + 1):
        with harness.connect() as connection:
            channel = Channel(connection)
            channel.send("join", harness.number, Spake("client", harness.wrong).element)
            answer = channel.receive()
            assert answer is not None
            assert answer[0] == "server"
    assert harness.join().id == CLUSTER.id


def test_greetings_without_a_proof_cost_no_guess(harness: Harness) -> None:
    for _ in range(40):
        with harness.connect() as connection:
            Channel(connection).send("join", harness.number, Spake("client", harness.wrong).element)
    assert harness.join().id == CLUSTER.id


def test_one_attempt_is_one_guess_over_any_number_of_addresses(harness: Harness) -> None:
    addresses = [Address(host, harness.address.port) for host in ("127.0.0.1", "localhost", "127.0.0.1.")]
    with pytest.raises(PairingError, match=f"the code is wrong .2 of {MAX_GUESSES} guesses left"):
        join_by_code(harness.wrong, addresses, JOINER)
    harness.heard(f"127.0.0.1 guessed wrong (1 of 3) for invitation {harness.number}")
    assert not [event for event in harness.events if "2 of 3" in event]
    assert join_by_code(harness.code, addresses, JOINER).id == CLUSTER.id


def test_an_attempt_id_is_judged_once(harness: Harness) -> None:
    def answer(code: str) -> object:
        with harness.connect() as connection:
            channel = Channel(connection)
            spake = Spake("client", code)
            channel.send("join", harness.number, spake.element, b"t" * 16)
            met = channel.receive()
            assert met is not None
            if met[0] != "server":
                return met
            seal = spake.seal(met[1], channel.transcript.digest())
            channel.send("prove", seal.close("client", ("x", JOINER.keys.public)))
            return channel.receive()

    assert answer(harness.wrong) == ("refuse", "wrong", 2)
    assert answer(harness.code) == ("refuse", "wrong", 2)
    assert harness.paired == []
    assert harness.join().id == CLUSTER.id


def test_the_hosts_of_wrong_guesses_are_reported(harness: Harness) -> None:
    for _ in range(MAX_GUESSES):
        with pytest.raises(PairingError):
            harness.join(harness.wrong)
    harness.heard(f"invitation {harness.number} is void after 3 wrong guesses, made at 127.0.0.1")


def test_the_code_of_another_cluster_is_left_unused(harness: Harness) -> None:
    with pytest.raises(PairingError, match="of another cluster") as raised:
        join_by_code(harness.code, [harness.address], JOINER, known="f" * 16)
    assert "--replace" in raised.value.hint
    assert join_by_code(harness.code, [harness.address], JOINER, known=CLUSTER.id).id == CLUSTER.id


def test_a_client_is_told_when_its_node_cannot_be_saved(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: PairedNode) -> None:
        raise EdgeppError("cannot write cluster.json: no space left")

    monkeypatch.setattr(harness.server, "_on_paired", full)
    with pytest.raises(PairingError, match="could not let this machine in"):
        harness.join()
    harness.heard("cannot be let in: cannot write cluster.json: no space left")


def test_an_expired_code_is_refused_as_expired(harness: Harness) -> None:
    expired = harness.code
    harness.now_s += INVITATION_S / 2
    harness.code = harness.server.invite()
    harness.now_s += INVITATION_S / 2 + 1
    harness.heard(f"invitation {expired.split('-')[0]} expired unused")
    with pytest.raises(PairingError, match="has expired"):
        harness.join(expired)
    assert harness.join().id == CLUSTER.id


def test_an_invitation_that_was_never_made(harness: Harness) -> None:
    number = next(number for number in range(1, 100) if number not in harness.server.numbers())
    with pytest.raises(PairingError, match=f"invitation {number} is not open"):
        harness.join(f"{number}-{words()[0]}-{words()[1]}")


@pytest.mark.parametrize(
    "code", ["", "7", "7-tango", "tango-lemon", "777-tango-lemon", "7-tango-lemon-x", "7_tango_le"]
)
def test_malformed_codes_are_refused(code: str) -> None:
    with pytest.raises(UsageError, match="is not a code"):
        join_by_code(code, [Address("127.0.0.1", 1)], JOINER)


def test_a_typing_error_in_a_word_costs_no_guess() -> None:
    with pytest.raises(UsageError, match="'lemom' is not a word that codes have") as raised:
        join_by_code("7-tango-lemom", [Address("127.0.0.1", 1)], JOINER)
    assert raised.value.hint == "is it 'lemon'?"


def test_the_number_of_open_invitations_is_bounded(harness: Harness) -> None:
    codes = [harness.server.invite() for _ in range(MAX_OPEN_INVITATIONS - 1)]
    assert len({code.split("-")[0] for code in (*codes, harness.code)}) == MAX_OPEN_INVITATIONS
    with pytest.raises(UsageError, match="open already"):
        harness.server.invite()


def test_a_port_that_is_taken_is_named(harness: Harness) -> None:
    second = PairingServer(
        harness.address, lambda: CLUSTER, harness.paired.append, lambda event: harness.events.append(str(event))
    )
    with pytest.raises(UsageError, match="cannot take invitation codes"):
        second.invite()


def test_dead_addresses_do_not_hold_up_the_one_that_works(harness: Harness) -> None:
    dead = [Address("127.0.0.1", 1), Address("no-such-host.invalid", 5720), Address("127.0.0.1", 65535)]
    assert join_by_code(harness.code, [*dead, harness.address], JOINER).addresses == (str(harness.address),)


class _Tap:
    """Passes one connection on to the pairing server and keeps what the client sent."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.sent = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1] - 1)
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with client, self._harness.connect() as server:
            back = threading.Thread(target=self._copy_back, args=(server, client))
            back.start()
            while part := client.recv(4096):
                self.sent += part
                server.sendall(part)
            server.shutdown(socket.SHUT_WR)
            back.join()
        self._listener.close()

    @staticmethod
    def _copy_back(server: socket.socket, client: socket.socket) -> None:
        while part := server.recv(4096):
            client.sendall(part)

    def close(self) -> None:
        self._threads[0].join()


def test_a_recorded_exchange_is_useless_and_contains_no_secret(harness: Harness) -> None:
    harness.server.invite()
    tap = _Tap(harness)
    assert join_by_code(harness.code, [tap.address], JOINER).id == CLUSTER.id
    tap.close()
    for secret in (harness.code, JOINER.keys.public, "mini"):
        assert secret.encode() not in tap.sent
    # The same invitation again, as if it were still open: the server draws a new element, so the old box does not open.
    harness.server._invitations._open[harness.number] = PairingInvitation(
        harness.number, harness.code, harness.now_s + 100
    )
    with harness.connect() as connection:
        connection.sendall(tap.sent)
        channel = Channel(connection)
        assert (channel.receive() or ())[0] == "server"
        assert channel.receive() == ("refuse", "wrong", 2)
    assert len(harness.paired) == 1


class _FalseServer:
    """A machine that claims to have the invitation and does not know its code."""

    def __init__(self, connections: int) -> None:
        self.boxes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1] - 1)
        self._thread = threading.Thread(target=self._run, args=(connections,))
        self._thread.start()

    def _run(self, connections: int) -> None:
        self._listener.settimeout(0.1)
        end = time.monotonic() + PATIENCE_S
        while connections and time.monotonic() < end:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            connections -= 1
            with connection:
                channel = Channel(connection)
                try:
                    asked = channel.receive()
                    if asked is None:
                        continue
                    spake = Spake("server", "1-wrong-code")
                    channel.send("server", spake.element)
                    seal = spake.seal(asked[2], channel.transcript.digest())
                    if channel.receive() is not None:
                        self.boxes += 1
                    reply = ("f" * 16, "evil", COORDINATOR.keys.public, 5720)
                    channel.send("admit", seal.close("server", reply))
                except (OSError, RemoteProtocolError):
                    continue

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


def test_a_false_server_is_not_believed() -> None:
    false = _FalseServer(1)
    with pytest.raises(PairingError, match="does not know the code"):
        join_by_code("7-tango-lemon", [false.address], JOINER)
    false.close()


def test_many_false_servers_get_three_guesses_together() -> None:
    false = [_FalseServer(1) for _ in range(5)]
    with pytest.raises(PairingError, match="does not know the code"):
        join_by_code("7-tango-lemon", [one.address for one in false], JOINER)
    for one in false:
        one.close()
    assert sum(one.boxes for one in false) == MAX_GUESSES


@contextmanager
def _silent_servers(count: int) -> Iterator[list[Address]]:
    """Machines that claim to have the invitation: the connection is made, and nobody ever answers."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        yield [Address("127.0.0.1", one.getsockname()[1] - 1) for one in listeners]


@pytest.mark.parametrize("count", [64, candidates.MAX_CONNECTIONS + 4])
def test_silent_false_coordinators_do_not_hold_up_the_true_one(harness: Harness, count: int) -> None:
    with _silent_servers(count) as silent:
        joined = join_by_code(harness.code, [*silent, harness.address], JOINER, wait_s=EXCHANGE_S * count / 2)
    assert joined.id == CLUSTER.id


def test_a_wrong_code_is_one_guess_among_silent_false_coordinators(harness: Harness) -> None:
    with _silent_servers(8) as silent, pytest.raises(PairingError, match=f"2 of {MAX_GUESSES} guesses left"):
        join_by_code(harness.wrong, [*silent, harness.address, *silent], JOINER)
    harness.heard(f"127.0.0.1 guessed wrong (1 of 3) for invitation {harness.number}")


def test_a_false_coordinator_that_keeps_a_proof_does_not_hold_up_the_true_one(harness: Harness) -> None:
    """Its answer is the first one; the proof that it got stays unanswered, so the true coordinator gets the next."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        kept: list[tuple[object, ...] | None] = []

        def keep() -> None:
            connection = stack.enter_context(listener.accept()[0])
            channel = Channel(connection)
            channel.receive()
            channel.send("server", Spake("server", harness.wrong).element)
            kept.append(channel.receive())

        thread = threading.Thread(target=keep)
        thread.start()
        false = Address("127.0.0.1", listener.getsockname()[1] - 1)
        harness.server._computing.acquire()  # the true coordinator answers second
        joined: list[Cluster] = []
        joiner = threading.Thread(
            target=lambda: joined.append(join_by_code(harness.code, [false, harness.address], JOINER, PATIENCE_S))
        )
        joiner.start()
        eventually("the false coordinator has a proof", lambda: kept)
        harness.server._computing.release()
        joiner.join()
        thread.join()
    assert kept[0] is not None
    assert kept[0][0] == "prove"
    assert [one.id for one in joined] == [CLUSTER.id]


def test_each_announcement_gets_its_turn() -> None:
    """The first address of each machine comes before the second one of any, however many one announces."""
    true, false = ([Address(host, port) for port in range(1, 17)] for host in ("10.0.0.1", "10.0.0.2"))
    turns = in_turns(false, false[4:], true[:2])
    assert turns[:5] == (false[0], false[4], true[0], false[1], false[5])
    assert len(turns) == len({*turns}) == 18


def test_another_protocol_version_is_refused(harness: Harness) -> None:
    with harness.connect() as connection:
        channel = Channel(connection)
        packed = msgpack.packb((protocol.VERSION + 1, "join", harness.number, bytes(33)))
        connection.sendall(len(packed).to_bytes(2, "big") + packed)
        assert channel.receive() == ("refuse", "unknown", 0)


def test_garbage_leaves_the_server_alive(harness: Harness) -> None:
    chaos = random.Random(7)  # noqa: S311
    bad_elements = [bytes(33), b"A" + bytes(32), b"A" + b"\xff" * 32, b"A\x01" + bytes(31), b"B" * 33, b""]
    openings = [b"", b"\0", b"\0\0", b"\xff\xff" + bytes(100), b"\0\x05hello", b"\0\x03\x93\x01\xc0", b"\0\x01\xc1"]
    for junk in [*openings, *(chaos.randbytes(chaos.randrange(1, 200)) for _ in range(40))]:
        with harness.connect() as connection:
            connection.sendall(junk)
    for element in bad_elements:
        with harness.connect() as connection:
            channel = Channel(connection)
            channel.send("join", harness.number, element)
            channel.send("prove", b"box")
            while True:
                try:
                    if channel.receive() is None:
                        break
                except (OSError, RemoteProtocolError):
                    break
    eventually("no connection is left", lambda: not harness.server._connections)
    assert harness.join().id == CLUSTER.id


def test_silent_connections_are_dropped_for_a_joining_node(harness: Harness) -> None:
    silent = [harness.connect() for _ in range(MAX_CONNECTIONS_PER_NETWORK)]
    eventually(
        "the connections are as wanted",
        lambda: len(harness.server._connections) == MAX_CONNECTIONS_PER_NETWORK,
    )
    assert harness.join().id == CLUSTER.id
    assert silent[0].recv(1) == b""  # the oldest went
    for connection in silent:
        connection.close()
    eventually("the connections are as wanted", lambda: not harness.server._connections)


def test_connections_without_a_proof_are_dropped_for_a_joining_node(harness: Harness) -> None:
    greeters = [harness.connect() for _ in range(MAX_CONNECTIONS_PER_NETWORK)]
    for connection in greeters:
        channel = Channel(connection)
        channel.send("join", harness.number, Spake("client", harness.wrong).element)
    assert harness.join().id == CLUSTER.id
    for connection in greeters:
        connection.close()


def test_a_joining_node_is_served_among_clients_that_reconnect_all_the_time(harness: Harness) -> None:
    """100 clients of one host greet, keep their connections, and reconnect as soon as they are dropped."""
    over = threading.Event()
    element = Spake("client", harness.wrong).element

    def hold() -> None:
        while not over.is_set():
            try:
                with harness.connect() as connection:
                    Channel(connection).send("join", harness.number, element)
                    connection.settimeout(0.2)
                    while not over.is_set():
                        try:
                            if not connection.recv(64):
                                break
                        except TimeoutError:
                            continue
            except OSError:
                time.sleep(0.01)

    holders = [threading.Thread(target=hold, daemon=True) for _ in range(100)]
    for holder in holders:
        holder.start()
    eventually("all wait", lambda: len(harness.server._connections._waiting) >= 100 - MAX_CONNECTIONS_PER_NETWORK)
    try:
        assert join_by_code(harness.code, [harness.address], JOINER, PATIENCE_S).id == CLUSTER.id
    finally:
        over.set()
        for holder in holders:
            holder.join(PATIENCE_S)


def test_waiting_clients_are_admitted_in_the_order_of_arrival() -> None:
    queue = AdmissionQueue()
    pairs = []

    def client(host: str) -> ClientConnection:
        pairs.append(socket.socketpair())
        return ClientConnection(pairs[-1][0], host)

    seated = [client("10.0.0.7") for _ in range(MAX_CONNECTIONS_PER_NETWORK)]
    for one in seated:
        assert queue.enqueue(one)
        assert queue.admit_next() is one
        one.mark_greeted()
    waiting = [client("10.0.0.7") for _ in range(MAX_WAITING_PER_NETWORK)]
    assert all(queue.enqueue(one) for one in waiting)
    assert not queue.enqueue(client("10.0.0.7"))
    assert queue.admit_next() is None
    other = client("10.0.0.8")
    assert queue.enqueue(other)
    assert queue.admit_next() is other  # the places of another host are not full
    for one, next_one in zip(seated, waiting, strict=False):
        queue.discard(one)
        assert queue.admit_next() is next_one
        next_one.mark_greeted()
    assert queue.clear_waiting() == waiting[MAX_CONNECTIONS_PER_NETWORK:]
    for one, there in pairs:
        one.close()
        there.close()


def test_which_connection_is_dropped() -> None:
    """One of its own network where that is full, else of the largest; never one that waits for the server."""
    queue = AdmissionQueue()
    pairs = []

    def client(host: str) -> ClientConnection:
        pairs.append(socket.socketpair())
        return ClientConnection(pairs[-1][0], host)

    honest = client("10.0.0.9")
    assert queue.admit(honest)
    strangers = [client("10.0.0.7") for _ in range(MAX_CONNECTIONS_PER_NETWORK + 1)]
    assert all(queue.admit(stranger) for stranger in strangers)
    assert strangers[0] not in queue
    assert honest in queue
    network = [client(f"2001:db8::{i:x}") for i in range(MAX_CONNECTIONS_PER_NETWORK + 5)]
    assert all(queue.admit(one) for one in network)
    assert len(queue) == MAX_CONNECTIONS
    assert honest in queue
    for one in queue:
        one.mark_greeted()
    assert not queue.admit(client("10.0.0.8"))
    for one, other in pairs:
        one.close()
        other.close()


def test_a_silent_connection_ends_in_time(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    with here, there:
        channel = Channel(here, 0.05)
        with pytest.raises(TimeoutError):
            channel.receive()


def test_closing_the_server_ends_open_connections(harness: Harness) -> None:
    with harness.connect():
        eventually("one is connected", lambda: harness.server._connections)
        harness.server.close()
    with pytest.raises(EdgeppError):
        harness.join()
