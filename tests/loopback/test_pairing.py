"""Joining by a code, over real connections: what a right one gives, and that a wrong one gives nothing, thrice."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator

import msgpack
import pytest

from edgepp.cluster.identity import Cluster, Identity, PairedNode, node_id
from edgepp.cluster.pairing import protocol as exchange
from edgepp.cluster.pairing import server as desks
from edgepp.cluster.pairing.admission_queue import PLACES, PLACES_OF_ONE_HOST, QUEUE_OF_ONE_HOST, AdmissionQueue, Caller
from edgepp.cluster.pairing.client import join_by_code
from edgepp.cluster.pairing.codes import GUESSES, words
from edgepp.cluster.pairing.protocol import Channel, Spake
from edgepp.cluster.pairing.server import INVITE_S, OPEN_AT_ONCE, PairingServer
from edgepp.errors import EdgeppError, PairingError, RemoteProtocolError, UsageError
from edgepp.wire.security import KeyPair
from edgepp.wire.transport import Address
from tests.waiting import PATIENCE_S, eventually


def _identity(name: str) -> Identity:
    keys = KeyPair.generate()
    return Identity(node_id(keys.public), name, keys)


COORDINATOR, JOINER = _identity("tower"), _identity("mini")
CLUSTER = Cluster("0123456789abcdef", PairedNode.of(COORDINATOR.name, COORDINATOR.keys.public))


class Desk:
    """A desk on loopback whose clock the test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.paired: list[PairedNode] = []
        self.events: list[str] = []
        for _ in range(20):
            self.address = Address("127.0.0.1", random.randrange(20000, 32000))  # noqa: S311
            self.desk = PairingServer(
                self.address,
                lambda: CLUSTER,
                self.paired.append,
                lambda event: self.events.append(str(event)),
                lambda: self.now_s,
            )
            try:
                self.code = self.desk.invite()
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

    def join_by_code(self, code: str = "") -> Cluster:
        return join_by_code(code or self.code, [self.address], JOINER)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.address.host, self.address.port + 1), 10)

    def heard(self, line: str) -> None:
        eventually(line, lambda: any(line in event for event in self.events))


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.desk.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "pairing"]


def test_the_words_are_short_and_distinct() -> None:
    assert len(set(words())) == len(words()) >= 256
    assert all(3 <= len(word) <= 8 and word.isascii() and word.islower() and word.isalpha() for word in words())
    assert len({word[:4] for word in words()}) == len(words())


def test_a_code_pairs_once(desk: Desk) -> None:
    cluster = desk.redeem(f" {desk.code.upper().replace('-', ' ')} ")
    assert (cluster.id, cluster.coordinator) == (CLUSTER.id, CLUSTER.coordinator)
    assert cluster.addresses == (str(desk.address),)
    assert desk.paired == [PairedNode(JOINER.node, "mini", JOINER.keys.public)]
    desk.heard(f"mini at 127.0.0.1 is paired, by invitation {desk.number}")
    assert desk.desk.numbers() == ()


def test_the_desk_listens_only_while_an_invitation_is_open(desk: Desk) -> None:
    desk.redeem()
    eventually("no thread is left", lambda: not desk.desk._threads)
    with pytest.raises(PairingError, match=f"nobody takes invitation {desk.number}"):
        desk.redeem()
    desk.code = desk.desk.invite()
    assert desk.redeem().id == CLUSTER.id


def test_a_used_code_says_so(desk: Desk) -> None:
    used, desk.code = desk.code, desk.desk.invite()
    desk.redeem(used)
    with pytest.raises(PairingError, match="used already"):
        desk.redeem(used)
    desk.heard(f"127.0.0.1 asked for invitation {used.split('-')[0]}, which is not open")
    assert len(desk.paired) == 1


def test_three_wrong_guesses_void_an_invitation(desk: Desk) -> None:
    other = desk.desk.invite()
    for left in (2, 1):
        with pytest.raises(PairingError, match=f"the code is wrong .{left} of {GUESSES} guesses left"):
            desk.redeem(desk.wrong)
    with pytest.raises(PairingError, match=f"invitation {desk.number} is now void"):
        desk.redeem(desk.wrong)
    with pytest.raises(PairingError, match="is void after too many wrong guesses"):
        desk.redeem()
    desk.heard(f"127.0.0.1 guessed wrong (1 of 3) for invitation {desk.number}")
    desk.heard(f"invitation {desk.number} is void after 3 wrong guesses")
    assert desk.paired == []
    assert desk.redeem(other).id == CLUSTER.id


def test_guesses_made_at_once_are_all_counted(desk: Desk) -> None:
    desk.desk.invite()
    connections = [desk.connect() for _ in range(4)]
    channels = [Channel(connection) for connection in connections]
    seals = []
    for channel in channels:
        spake = Spake("joiner", desk.wrong)
        channel.send("join", desk.number, spake.element)
        answer = channel.receive()
        assert answer is not None
        seals.append(spake.seal(answer[1], channel.transcript.digest()))
    for channel, seal in zip(channels, seals, strict=True):
        channel.send("prove", seal.close("joiner", ("x", JOINER.keys.public)))
    answers = sorted(str(channel.receive()) for channel in channels)
    assert answers == [
        "('refuse', 'void', 0)",
        "('refuse', 'wrong', 0)",
        "('refuse', 'wrong', 1)",
        "('refuse', 'wrong', 2)",
    ]
    for connection in connections:
        connection.close()


def test_an_exchange_that_ends_early_tells_nothing_and_costs_no_guess(desk: Desk) -> None:
    for _ in range(GUESSES + 1):
        with desk.connect() as connection:
            channel = Channel(connection)
            channel.send("join", desk.number, Spake("joiner", desk.wrong).element)
            answer = channel.receive()
            assert answer is not None
            assert answer[0] == "desk"
    assert desk.redeem().id == CLUSTER.id


def test_greetings_without_a_guess_void_nothing(desk: Desk) -> None:
    for _ in range(40):
        with desk.connect() as connection:
            Channel(connection).send("join", desk.number, Spake("joiner", desk.wrong).element)
    assert desk.redeem().id == CLUSTER.id


def test_one_try_is_one_guess_by_however_many_addresses(desk: Desk) -> None:
    addresses = [Address(host, desk.address.port) for host in ("127.0.0.1", "localhost", "127.0.0.1.")]
    with pytest.raises(PairingError, match=f"the code is wrong .2 of {GUESSES} guesses left"):
        join_by_code(desk.wrong, addresses, JOINER)
    desk.heard(f"127.0.0.1 guessed wrong (1 of 3) for invitation {desk.number}")
    assert not [event for event in desk.events if "2 of 3" in event]
    assert join_by_code(desk.code, addresses, JOINER).id == CLUSTER.id


def test_a_try_is_judged_once_so_that_its_number_buys_no_other_guess(desk: Desk) -> None:
    def answer(code: str) -> object:
        with desk.connect() as connection:
            channel = Channel(connection)
            spake = Spake("joiner", code)
            channel.send("join", desk.number, spake.element, b"t" * 16)
            met = channel.receive()
            assert met is not None
            if met[0] != "desk":
                return met
            seal = spake.seal(met[1], channel.transcript.digest())
            channel.send("prove", seal.close("joiner", ("x", JOINER.keys.public)))
            return channel.receive()

    assert answer(desk.wrong) == ("refuse", "wrong", 2)
    assert answer(desk.code) == ("refuse", "wrong", 2)
    assert desk.paired == []
    assert desk.redeem().id == CLUSTER.id


def test_the_inviter_hears_who_made_an_invitation_void(desk: Desk) -> None:
    for _ in range(GUESSES):
        with pytest.raises(PairingError):
            desk.redeem(desk.wrong)
    desk.heard(f"invitation {desk.number} is void after 3 wrong guesses, made at 127.0.0.1")


def test_the_code_of_another_cluster_is_left_unused(desk: Desk) -> None:
    with pytest.raises(PairingError, match="of another cluster") as raised:
        join_by_code(desk.code, [desk.address], JOINER, known="f" * 16)
    assert "--replace" in raised.value.hint
    assert join_by_code(desk.code, [desk.address], JOINER, known=CLUSTER.id).id == CLUSTER.id


def test_a_member_that_cannot_be_written_down_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: PairedNode) -> None:
        raise EdgeppError("cannot write cluster.json: no space left")

    monkeypatch.setattr(desk.desk, "_on_paired", full)
    with pytest.raises(PairingError, match="could not let this machine in"):
        desk.redeem()
    desk.heard("cannot be let in: cannot write cluster.json: no space left")


def test_an_expired_code_says_so(desk: Desk) -> None:
    expired = desk.code
    desk.now_s += INVITE_S / 2
    desk.code = desk.desk.invite()
    desk.now_s += INVITE_S / 2 + 1
    desk.heard(f"invitation {expired.split('-')[0]} expired unused")
    with pytest.raises(PairingError, match="has expired"):
        desk.redeem(expired)
    assert desk.redeem().id == CLUSTER.id


def test_an_invitation_that_was_never_made(desk: Desk) -> None:
    number = next(number for number in range(1, 100) if number not in desk.desk.numbers())
    with pytest.raises(PairingError, match=f"invitation {number} is not open"):
        desk.redeem(f"{number}-{words()[0]}-{words()[1]}")


@pytest.mark.parametrize(
    "code", ["", "7", "7-tango", "tango-lemon", "777-tango-lemon", "7-tango-lemon-x", "7_tango_le"]
)
def test_what_is_no_code(code: str) -> None:
    with pytest.raises(UsageError, match="is not a code"):
        join_by_code(code, [Address("127.0.0.1", 1)], JOINER)


def test_a_slip_in_a_word_costs_no_guess() -> None:
    with pytest.raises(UsageError, match="'lemom' is not a word that codes have") as raised:
        join_by_code("7-tango-lemom", [Address("127.0.0.1", 1)], JOINER)
    assert raised.value.hint == "is it 'lemon'?"


def test_only_so_many_are_open_at_once(desk: Desk) -> None:
    codes = [desk.desk.invite() for _ in range(OPEN_AT_ONCE - 1)]
    assert len({code.split("-")[0] for code in (*codes, desk.code)}) == OPEN_AT_ONCE
    with pytest.raises(UsageError, match="open already"):
        desk.desk.invite()


def test_a_port_that_is_taken_is_named(desk: Desk) -> None:
    second = PairingServer(
        desk.address, lambda: CLUSTER, desk.paired.append, lambda event: desk.events.append(str(event))
    )
    with pytest.raises(UsageError, match="cannot take invitations"):
        second.invite()


def test_dead_addresses_do_not_hold_up_the_one_that_works(desk: Desk) -> None:
    dead = [Address("127.0.0.1", 1), Address("no-such-host.invalid", 5720), Address("127.0.0.1", 65535)]
    assert join_by_code(desk.code, [*dead, desk.address], JOINER).addresses == (str(desk.address),)


class _Tap:
    """Passes one connection on to the desk and keeps what the joiner said."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.said = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1] - 1)
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def _run(self) -> None:
        joiner, _ = self._listener.accept()
        with joiner, self._desk.connect() as desk:
            back = threading.Thread(target=self._copy_back, args=(desk, joiner))
            back.start()
            while part := joiner.recv(4096):
                self.said += part
                desk.sendall(part)
            desk.shutdown(socket.SHUT_WR)
            back.join()
        self._listener.close()

    @staticmethod
    def _copy_back(desk: socket.socket, joiner: socket.socket) -> None:
        while part := desk.recv(4096):
            joiner.sendall(part)

    def close(self) -> None:
        self._threads[0].join()


def test_a_recording_is_of_no_use_and_shows_no_secret(desk: Desk) -> None:
    desk.desk.invite()
    tap = _Tap(desk)
    assert join_by_code(desk.code, [tap.address], JOINER).id == CLUSTER.id
    tap.close()
    for secret in (desk.code, JOINER.keys.public, "mini"):
        assert secret.encode() not in tap.said
    # The same invitation again, as if it were still open: the desk draws anew, so the old box does not open.
    desk.desk._open[desk.number] = desks._Invitation(desk.number, desk.code, desk.now_s + 100)
    with desk.connect() as connection:
        connection.sendall(tap.said)
        channel = Channel(connection)
        assert (channel.receive() or ())[0] == "desk"
        assert channel.receive() == ("refuse", "wrong", 2)
    assert len(desk.paired) == 1


class _FalseDesk:
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
                    spake = Spake("desk", "1-wrong-code")
                    channel.send("desk", spake.element)
                    seal = spake.seal(asked[2], channel.transcript.digest())
                    if channel.receive() is not None:
                        self.boxes += 1
                    reply = ("f" * 16, "evil", COORDINATOR.keys.public, 5720)
                    channel.send("admit", seal.close("desk", reply))
                except (OSError, RemoteProtocolError):
                    continue

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


def test_a_false_desk_is_not_believed() -> None:
    false = _FalseDesk(1)
    with pytest.raises(PairingError, match="does not know the code"):
        join_by_code("7-tango-lemon", [false.address], JOINER)
    false.close()


def test_many_false_desks_get_three_guesses_together() -> None:
    false = [_FalseDesk(1) for _ in range(5)]
    with pytest.raises(PairingError, match="does not know the code"):
        join_by_code("7-tango-lemon", [one.address for one in false], JOINER)
    for one in false:
        one.close()
    assert sum(one.boxes for one in false) == GUESSES


def test_another_version_is_named(desk: Desk) -> None:
    with desk.connect() as connection:
        channel = Channel(connection)
        packed = msgpack.packb((exchange.VERSION + 1, "join", desk.number, bytes(33)))
        connection.sendall(len(packed).to_bytes(2, "big") + packed)
        assert channel.receive() == ("refuse", "unknown", 0)


def test_garbage_leaves_the_desk_alive(desk: Desk) -> None:
    chaos = random.Random(7)  # noqa: S311
    bad_elements = [bytes(33), b"A" + bytes(32), b"A" + b"\xff" * 32, b"A\x01" + bytes(31), b"B" * 33, b""]
    openings = [b"", b"\0", b"\0\0", b"\xff\xff" + bytes(100), b"\0\x05hello", b"\0\x03\x93\x01\xc0", b"\0\x01\xc1"]
    for junk in [*openings, *(chaos.randbytes(chaos.randrange(1, 200)) for _ in range(40))]:
        with desk.connect() as connection:
            connection.sendall(junk)
    for element in bad_elements:
        with desk.connect() as connection:
            channel = Channel(connection)
            channel.send("join", desk.number, element)
            channel.send("prove", b"box")
            while True:
                try:
                    if channel.receive() is None:
                        break
                except (OSError, RemoteProtocolError):
                    break
    eventually("no connection is left", lambda: not desk.desk._connections)
    assert desk.redeem().id == CLUSTER.id


def test_silent_strangers_give_way_to_a_joiner(desk: Desk) -> None:
    silent = [desk.connect() for _ in range(PLACES_OF_ONE_HOST)]
    eventually("the desk is as wanted", lambda: len(desk.desk._connections) == PLACES_OF_ONE_HOST)
    assert desk.redeem().id == CLUSTER.id
    assert silent[0].recv(1) == b""  # the oldest went
    for connection in silent:
        connection.close()
    eventually("the desk is as wanted", lambda: not desk.desk._connections)


def test_strangers_who_greet_and_wait_give_way_to_a_joiner(desk: Desk) -> None:
    greeters = [desk.connect() for _ in range(PLACES_OF_ONE_HOST)]
    for connection in greeters:
        channel = Channel(connection)
        channel.send("join", desk.number, Spake("joiner", desk.wrong).element)
    assert desk.redeem().id == CLUSTER.id
    for connection in greeters:
        connection.close()


def test_a_joiner_has_its_turn_among_strangers_who_come_again_and_again(desk: Desk) -> None:
    """100 callers of one host greet, hold their places and come back as soon as they are sent away."""
    over = threading.Event()
    element = Spake("joiner", desk.wrong).element

    def hold() -> None:
        while not over.is_set():
            try:
                with desk.connect() as connection:
                    Channel(connection).send("join", desk.number, element)
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
    eventually("all wait", lambda: len(desk.desk._connections._queue) >= 100 - PLACES_OF_ONE_HOST)
    try:
        assert join_by_code(desk.code, [desk.address], JOINER, PATIENCE_S).id == CLUSTER.id
    finally:
        over.set()
        for holder in holders:
            holder.join(PATIENCE_S)


def test_callers_without_a_place_are_seated_in_the_order_of_their_arrival() -> None:
    crowd = AdmissionQueue()
    pairs = []

    def caller(host: str) -> Caller:
        pairs.append(socket.socketpair())
        return Caller(pairs[-1][0], host)

    seated = [caller("10.0.0.7") for _ in range(PLACES_OF_ONE_HOST)]
    for one in seated:
        assert crowd.enqueue(one)
        assert crowd.seat_next() is one
        one.is_served()
    waiting = [caller("10.0.0.7") for _ in range(QUEUE_OF_ONE_HOST)]
    assert all(crowd.enqueue(one) for one in waiting)
    assert not crowd.enqueue(caller("10.0.0.7"))
    assert crowd.seat_next() is None
    other = caller("10.0.0.8")
    assert crowd.enqueue(other)
    assert crowd.seat_next() is other  # the places of another host are not full
    for one, next_one in zip(seated, waiting, strict=False):
        crowd.discard(one)
        assert crowd.seat_next() is next_one
        next_one.is_served()
    assert crowd.dismiss_queue() == waiting[PLACES_OF_ONE_HOST:]
    for one, there in pairs:
        one.close()
        there.close()


def test_who_gives_way() -> None:
    """Of its own host where that has its part, else of the largest; never one that waits for the desk."""
    crowd = AdmissionQueue()
    pairs = []

    def caller(host: str) -> Caller:
        pairs.append(socket.socketpair())
        return Caller(pairs[-1][0], host)

    honest = caller("10.0.0.9")
    assert crowd.add(honest)
    strangers = [caller("10.0.0.7") for _ in range(PLACES_OF_ONE_HOST + 1)]
    assert all(crowd.add(stranger) for stranger in strangers)
    assert strangers[0] not in crowd
    assert honest in crowd
    network = [caller(f"2001:db8::{i:x}") for i in range(PLACES_OF_ONE_HOST + 5)]
    assert all(crowd.add(one) for one in network)
    assert len(crowd) == PLACES
    assert honest in crowd
    for one in crowd:
        one.is_served()
    assert not crowd.add(caller("10.0.0.8"))
    for one, other in pairs:
        one.close()
        other.close()


def test_a_silent_connection_ends_in_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    with here, there:
        channel = Channel(here, 0.05)
        with pytest.raises(TimeoutError):
            channel.receive()


def test_closing_the_desk_ends_what_is_under_way(desk: Desk) -> None:
    with desk.connect():
        eventually("one is connected", lambda: desk.desk._connections)
        desk.desk.close()
    with pytest.raises(EdgeppError):
        desk.redeem()
