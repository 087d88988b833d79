"""The coordinator's book: what is let in is bounded, revoked stays revoked, and what is written can be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from edgepp.cluster import identity as identities
from edgepp.cluster.identity import (
    MAX_MEMBERS,
    MAX_TOKENS,
    PairedNode,
    forget_cluster,
    load_cluster,
    load_identity,
    new_cluster,
    remember_address,
    save_cluster,
)
from edgepp.cluster.pairing.tokens import parse_token
from edgepp.coordinator.trust_store import MAX_NODES_PER_TOKEN, TrustStore
from edgepp.errors import EdgeppError, PairingError, UsageError
from edgepp.wire.messages import Adopt
from edgepp.wire.transport import Address


class Gate:
    """Remembers whom it admits."""

    admitted: frozenset[str] = frozenset()

    def admit(self, keys: set[str]) -> None:
        self.admitted = frozenset(keys)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def book(home: Path) -> TrustStore:
    identity = load_identity()
    return TrustStore(identity, new_cluster(identity), Gate())  # type: ignore[arg-type]


def key(number: int) -> str:
    return z85.encode(number.to_bytes(32, "big")).decode()


def token_key(book: TrustStore) -> str:
    return parse_token(book.token()["token"]).keys.public


def adopted(book: TrustStore, token: str, number: int) -> str:
    return book.adopt(token, "10.0.0.9", Adopt(f"node {number}", key(number))).refusal


def test_a_token_lets_in_so_many_and_no_more(book: TrustStore) -> None:
    token = token_key(book)
    assert [adopted(book, token, n) for n in range(MAX_NODES_PER_TOKEN)] == [""] * MAX_NODES_PER_TOKEN
    assert "the most that one token can" in adopted(book, token, MAX_NODES_PER_TOKEN)
    assert adopted(book, token, 3) == ""  # it is a member already
    book.revoke("node 3")
    assert "the most that one token can" in adopted(book, token, MAX_NODES_PER_TOKEN)  # a revoked one counts on
    assert adopted(book, token_key(book), MAX_NODES_PER_TOKEN) == ""
    assert load_cluster() == book.cluster


def test_a_full_book_takes_nobody_and_is_read_again(home: Path) -> None:
    identity = load_identity()
    members = tuple(PairedNode.of(f"node {n}", key(n)) for n in range(MAX_MEMBERS))
    book = TrustStore(identity, replace(new_cluster(identity), members=members), Gate())  # type: ignore[arg-type]
    assert "paired with this cluster already" in adopted(book, token_key(book), MAX_MEMBERS)
    with pytest.raises(UsageError, match="paired with this cluster already"):
        book.pair(PairedNode.of("mini", key(MAX_MEMBERS)))
    book.pair(PairedNode.of("renamed", key(0)))
    assert load_cluster() == book.cluster
    with pytest.raises(EdgeppError, match="stays as it is"):
        save_cluster(replace(book.cluster, members=(*members, PairedNode.of("one more", key(MAX_MEMBERS)))))
    assert load_cluster() == book.cluster


def test_an_older_book_that_is_too_long_loses_its_end_and_is_served(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = load_identity()
    save_cluster(new_cluster(identity))
    path = home / "cluster.json"
    members = [{"node": identities.node_id(key(n)), "name": f"n{n}", "key": key(n)} for n in range(MAX_MEMBERS + 1)]
    path.write_text(json.dumps({**json.loads(path.read_text()), "members": members}))
    cluster = load_cluster()
    assert cluster is not None
    assert len(cluster.members) == MAX_MEMBERS
    assert f"of the cluster's {MAX_MEMBERS + 1} members only the first {MAX_MEMBERS} are kept" in caplog.text
    TrustStore(identity, cluster, Gate())  # type: ignore[arg-type]
    caplog.clear()
    assert load_cluster() == cluster
    assert not caplog.text


def test_a_revoked_node_comes_back_by_a_code_and_by_nothing_else(book: TrustStore) -> None:
    gate: Gate = book._gate  # type: ignore[assignment]
    token = token_key(book)
    assert adopted(book, token, 1) == ""
    assert book.token_of(book.revoke("node 1")) == "token-1"
    assert key(1) not in gate.admitted
    for one in (token, token_key(book)):
        assert "revoked this machine's key" in adopted(book, one, 1)
    assert [peer["name"] for peer in book.peers({})["revoked"]] == ["node 1"]
    again = TrustStore(book._identity, load_cluster(), gate)  # type: ignore[arg-type]
    assert "revoked this machine's key" in adopted(again, token, 1)
    with pytest.raises(UsageError, match="revoked already"):
        again.revoke("node 1")
    again.pair(PairedNode.of("node 1", key(1)))
    assert key(1) in gate.admitted
    assert again.peers({})["revoked"] == []


def test_a_withdrawn_token_lets_nobody_in_and_its_name_is_not_given_again(book: TrustStore) -> None:
    gate: Gate = book._gate  # type: ignore[assignment]
    token = token_key(book)
    adopted(book, token, 1)
    book.revoke("token-1")
    assert token not in gate.admitted
    assert key(1) in gate.admitted
    with pytest.raises(UsageError, match="a connection with a token's key"):
        adopted(book, token, 2)
    assert book.token()["name"] == "token-2"
    told = book.peers({})
    assert [one["name"] for one in told["tokens"]] == ["token-2"]
    assert [(one["name"], one["nodes"]) for one in told["withdrawn"]] == [("token-1", 1)]
    assert told["peers"][0]["came_by"] == "token-1"


def test_tokens_have_a_bound(book: TrustStore) -> None:
    for _ in range(MAX_TOKENS):
        book.token()
    with pytest.raises(UsageError, match=f"{MAX_TOKENS} tokens already"):
        book.token()
    assert load_cluster() == book.cluster


def test_who_is_meant(book: TrustStore) -> None:
    one, two = PairedNode.of("mini", key(1)), PairedNode.of("mini", key(2))
    liar = PairedNode.of(one.node, key(3))
    for member in (one, two, liar):
        book.pair(member)
    with pytest.raises(UsageError, match="more than one"):
        book.revoke("mini")
    for short in ("", one.node[:3]):
        with pytest.raises(UsageError, match="no node or token"):
            book.revoke(short)
    assert book.revoke(one.node) == one
    assert book.revoke("now", {two.node: "now"}) == two
    assert book.revoke(liar.node[:8]) == liar


@pytest.mark.parametrize(
    "change",
    [
        lambda book: book.token(),
        lambda book: book.pair(PairedNode.of("mini", key(1))),
        lambda book: book.revoke("old"),
        lambda book: book.forget(book.cluster.members[0].node),
    ],
)
def test_what_cannot_be_written_has_not_happened(
    book: TrustStore, change: Callable[[TrustStore], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    book.pair(PairedNode.of("old", key(9)))
    gate: Gate = book._gate  # type: ignore[assignment]
    before, admitted = book.cluster, gate.admitted

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EdgeppError, match=r"cannot write .*No space left"):
        change(book)
    assert (book.cluster, gate.admitted, load_cluster()) == (before, admitted, before)


def test_what_a_command_remembers_takes_nothing_back(book: TrustStore) -> None:
    stale = load_cluster()
    book.pair(PairedNode.of("mini", key(1)))
    assert stale is not None
    remember_address(stale.id, Address("10.0.0.7", 5700))
    kept = load_cluster()
    assert kept is not None
    assert (kept.members, kept.addresses) == (book.cluster.members, ("10.0.0.7:5700",))


def test_a_cluster_that_was_left_does_not_come_back(book: TrustStore) -> None:
    identifier = book.cluster.id
    forget_cluster()
    remember_address(identifier, Address("10.0.0.7", 5700))
    with pytest.raises(PairingError, match="has left the cluster"):
        book.token()
    assert load_cluster() is None


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["a" * 16, key(1), "1.2.3.4:5"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["node", "name", "key", "token", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
_FIELDS = ("id", "coordinator", "members", "tokens", "addresses", "revoked", "withdrawn")


@given(changes=st.dictionaries(st.sampled_from(_FIELDS), _VALUES, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_book_holds_is_read_or_named_and_what_is_read_can_be_written(
    home: Path, changes: dict[str, object]
) -> None:
    save_cluster(new_cluster(load_identity()))
    path = home / "cluster.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    try:
        cluster = load_cluster()
    except EdgeppError:
        return
    assert cluster is not None
    save_cluster(cluster)
    assert load_cluster() == cluster
