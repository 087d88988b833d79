"""Invitations without sockets: how guesses are counted, and why an attempt is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from edgepp.cluster.identity import PairedNode
from edgepp.cluster.pairing.codes import MAX_GUESSES, make_code, read_code
from edgepp.cluster.pairing.invitations import INVITATION_S, MAX_OPEN_INVITATIONS, Invitations, Refusal
from edgepp.cluster.pairing.protocol import Seal
from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.wire.security import KeyPair

SEAL = Seal.of(b"k" * 32, b"t" * 32)
KEY = KeyPair.generate().public
RIGHT = SEAL.close("client", ("mini", KEY))
WRONG = Seal.of(b"x" * 32, b"t" * 32).close("client", ("mini", KEY))


@dataclass
class Book:
    """Invitations with a clock that the test moves, and the lines for the person who invited."""

    now_s: float = 0.0
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.invitations = Invitations(self.lines.append, lambda: self.now_s)

    def open(self) -> int:
        return int(self.invitations.open().split("-")[0])

    def judge(self, number: int, box: bytes, attempt: bytes = b"") -> PairedNode | Refusal:
        return self.invitations.judge(number, attempt, "10.0.0.7", SEAL, box)


def test_a_code_has_two_different_words_so_that_their_order_can_be_mistaken() -> None:
    codes = [make_code(7) for _ in range(3000)]
    assert [read_code(code) for code in codes] == [(7, code) for code in codes]
    assert all(len(set(code.split("-")[1:])) == 2 for code in codes)


def test_a_right_code_admits_one_node() -> None:
    book = Book()
    number = book.open()
    assert isinstance(book.invitations.code_of(number, b"", "10.0.0.7"), str)
    assert book.judge(number, RIGHT) == PairedNode.of("mini", KEY)
    assert book.judge(number, RIGHT) == Refusal("used")
    assert not book.invitations


def test_each_attempt_counts_once_and_the_last_guess_closes_the_invitation() -> None:
    book = Book()
    number = book.open()
    for left in reversed(range(MAX_GUESSES)):
        attempt = bytes([left]) * 16
        assert book.judge(number, WRONG, attempt) == Refusal("wrong", left)
        if left:
            assert book.judge(number, RIGHT, attempt) == Refusal("wrong", left)
            assert book.invitations.code_of(number, attempt, "10.0.0.7") == Refusal("wrong", left)
    assert book.judge(number, RIGHT) == Refusal("void")
    assert book.lines[-1] == f"invitation {number} is void after {MAX_GUESSES} wrong guesses, made at 10.0.0.7"


def test_an_invitation_expires() -> None:
    book = Book()
    number = book.open()
    book.now_s = INVITATION_S
    assert book.invitations.code_of(number, b"", "10.0.0.7") == Refusal("expired")
    assert book.invitations.numbers == ()


def test_a_box_with_something_else_in_it_uses_nothing_up() -> None:
    book = Book()
    number = book.open()
    for fields in ((), ("mini",), ("mini", "no key"), ("mini", KEY, 1)):
        with pytest.raises(RemoteProtocolError):
            book.judge(number, SEAL.close("client", fields))
    assert book.judge(number, RIGHT) == PairedNode.of("mini", KEY)


def test_the_number_of_open_invitations_is_bounded_and_numbers_are_distinct() -> None:
    book = Book()
    numbers = {book.open() for _ in range(MAX_OPEN_INVITATIONS)}
    assert len(numbers) == MAX_OPEN_INVITATIONS
    with pytest.raises(UsageError, match="open already"):
        book.invitations.check_room()
