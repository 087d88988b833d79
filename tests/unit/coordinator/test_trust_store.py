"""The trust store: admission is bounded, revoked keys stay revoked, and written files can be read back."""

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
from edgepp.wire.address import Address
from edgepp.wire.messages.nodes import Adopt
from tests.builders.properties import examples


class Gate:
    """Remembers the admitted keys."""

    admitted: frozenset[str] = frozenset()

    def admit(self, keys: set[str]) -> None:
        self.admitted = frozenset(keys)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def store(home: Path) -> TrustStore:
    identity = load_identity()
    return TrustStore(identity, new_cluster(identity), Gate())  # type: ignore[arg-type]


def key(number: int) -> str:
    return z85.encode(number.to_bytes(32, "big")).decode()


def token_key(store: TrustStore) -> str:
    return parse_token(store.token()["token"]).keys.public


def adopted(store: TrustStore, token: str, number: int) -> str:
    return store.adopt(token, "10.0.0.9", Adopt(f"node {number}", key(number))).refusal


def test_a_token_lets_in_a_bounded_number_of_nodes(store: TrustStore) -> None:
    token = token_key(store)
    assert [adopted(store, token, n) for n in range(MAX_NODES_PER_TOKEN)] == [""] * MAX_NODES_PER_TOKEN
    assert "the most that one token can" in adopted(store, token, MAX_NODES_PER_TOKEN)
    assert adopted(store, token, 3) == ""  # it is a member already
    store.revoke("node 3")
    assert "the most that one token can" in adopted(store, token, MAX_NODES_PER_TOKEN)  # a revoked one counts on
    assert adopted(store, token_key(store), MAX_NODES_PER_TOKEN) == ""
    assert load_cluster() == store.cluster


def test_a_full_store_admits_no_more_and_can_be_read_back(home: Path) -> None:
    identity = load_identity()
    members = tuple(PairedNode.of(f"node {n}", key(n)) for n in range(MAX_MEMBERS))
    store = TrustStore(identity, replace(new_cluster(identity), members=members), Gate())  # type: ignore[arg-type]
    assert "paired with this cluster already" in adopted(store, token_key(store), MAX_MEMBERS)
    with pytest.raises(UsageError, match="paired with this cluster already"):
        store.pair(PairedNode.of("mini", key(MAX_MEMBERS)))
    store.pair(PairedNode.of("renamed", key(0)))
    assert load_cluster() == store.cluster
    with pytest.raises(EdgeppError, match="stays as it is"):
        save_cluster(replace(store.cluster, members=(*members, PairedNode.of("one more", key(MAX_MEMBERS)))))
    assert load_cluster() == store.cluster


def test_lists_that_are_too_long_are_cut_when_they_are_read(home: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_only_a_code_admits_a_revoked_node_again(store: TrustStore) -> None:
    gate: Gate = store._gate  # type: ignore[assignment]
    token = token_key(store)
    assert adopted(store, token, 1) == ""
    assert store.token_of(store.revoke("node 1")) == "token-1"
    assert key(1) not in gate.admitted
    for one in (token, token_key(store)):
        assert "revoked this machine's key" in adopted(store, one, 1)
    assert [peer["name"] for peer in store.peers({})["revoked"]] == ["node 1"]
    again = TrustStore(store._identity, load_cluster(), gate)  # type: ignore[arg-type]
    assert "revoked this machine's key" in adopted(again, token, 1)
    with pytest.raises(UsageError, match="revoked already"):
        again.revoke("node 1")
    again.pair(PairedNode.of("node 1", key(1)))
    assert key(1) in gate.admitted
    assert again.peers({})["revoked"] == []


def test_a_withdrawn_token_admits_no_node_and_its_name_is_not_reused(store: TrustStore) -> None:
    gate: Gate = store._gate  # type: ignore[assignment]
    token = token_key(store)
    adopted(store, token, 1)
    store.revoke("token-1")
    assert token not in gate.admitted
    assert key(1) in gate.admitted
    with pytest.raises(UsageError, match="a connection with a token's key"):
        adopted(store, token, 2)
    assert store.token()["name"] == "token-2"
    told = store.peers({})
    assert [one["name"] for one in told["tokens"]] == ["token-2"]
    assert [(one["name"], one["nodes"]) for one in told["withdrawn"]] == [("token-1", 1)]
    assert told["peers"][0]["came_by"] == "token-1"


def test_the_number_of_tokens_is_bounded(store: TrustStore) -> None:
    for _ in range(MAX_TOKENS):
        store.token()
    with pytest.raises(UsageError, match=f"{MAX_TOKENS} tokens already"):
        store.token()
    assert load_cluster() == store.cluster


def test_names_ids_and_prefixes_find_a_node(store: TrustStore) -> None:
    one, two = PairedNode.of("mini", key(1)), PairedNode.of("mini", key(2))
    liar = PairedNode.of(one.node, key(3))
    for member in (one, two, liar):
        store.pair(member)
    with pytest.raises(UsageError, match="more than one"):
        store.revoke("mini")
    for short in ("", one.node[:3]):
        with pytest.raises(UsageError, match="no node or token"):
            store.revoke(short)
    assert store.revoke(one.node) == one
    assert store.revoke("now", {two.node: "now"}) == two
    assert store.revoke(liar.node[:8]) == liar


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.token(),
        lambda store: store.pair(PairedNode.of("mini", key(1))),
        lambda store: store.revoke("old"),
        lambda store: store.forget(store.cluster.members[0].node),
    ],
)
def test_a_change_that_cannot_be_written_has_no_effect(
    store: TrustStore, change: Callable[[TrustStore], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pair(PairedNode.of("old", key(9)))
    gate: Gate = store._gate  # type: ignore[assignment]
    before, admitted = store.cluster, gate.admitted

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EdgeppError, match=r"cannot write .*No space left"):
        change(store)
    assert (store.cluster, gate.admitted, load_cluster()) == (before, admitted, before)


def test_a_remembered_address_keeps_the_other_fields(store: TrustStore) -> None:
    stale = load_cluster()
    store.pair(PairedNode.of("mini", key(1)))
    assert stale is not None
    remember_address(stale.id, Address("10.0.0.7", 5700))
    kept = load_cluster()
    assert kept is not None
    assert (kept.members, kept.addresses) == (store.cluster.members, ("10.0.0.7:5700",))


def test_a_cluster_that_was_left_does_not_come_back(store: TrustStore) -> None:
    identifier = store.cluster.id
    forget_cluster()
    remember_address(identifier, Address("10.0.0.7", 5700))
    with pytest.raises(PairingError, match="has left the cluster"):
        store.token()
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
@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_content_is_read_or_refused_and_what_is_read_can_be_written(home: Path, changes: dict[str, object]) -> None:
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
