"""Files of a node: identity, cluster, view, lock and token are private, and checked when they are read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from edgepp.cluster import state_files as files
from edgepp.cluster.identity import (
    MAX_ADDRESSES,
    Cluster,
    PairedNode,
    clean_name,
    load_cluster,
    load_identity,
    load_view,
    new_cluster,
    node_id,
    save_cluster,
    save_view,
)
from edgepp.cluster.node_lock import hold_node_lock, node_lock_holder, wait_until_ended
from edgepp.cluster.pairing.tokens import make_token, parse_token, read_token
from edgepp.cluster.state_files import config_dir
from edgepp.errors import EdgeppError, UsageError
from edgepp.wire.security import KeyPair


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path / "home"))
    for name in ("EDGEPP_NAME", "EDGEPP_TOKEN", "EDGEPP_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _cluster() -> Cluster:
    members = tuple(PairedNode.of(f"mini {i}", KeyPair.generate().public) for i in range(3))
    return replace(new_cluster(load_identity()), members=members, addresses=("10.0.0.7:5720", "[fe80::1]:5720"))


def test_an_identity_is_made_once_and_private(home: Path) -> None:
    identity = load_identity()
    assert load_identity() == identity
    assert identity.node == node_id(identity.keys.public)
    assert len(identity.node) == 16
    assert _mode(home) == 0o700
    assert [_mode(path) for path in sorted(home.iterdir())] == [0o600] * len(list(home.iterdir()))
    assert identity.keys.secret not in repr(identity)


def test_many_at_once_make_one_identity() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len({identity.node for identity in pool.map(lambda _: load_identity(), range(16))}) == 1


def test_the_name_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPP_NAME", "\x1b[31mmini\n")
    assert load_identity().name == "[31mmini"


@pytest.mark.parametrize(
    ("text", "name"),
    [("mini", "mini"), ("a\x00b\u202ec", "abc"), (" \n\t", "unnamed"), ("é" * 99, "é" * 40), ("a b", "a b")],
)
def test_names_are_safe_to_print(text: str, name: str) -> None:
    assert clean_name(text) == name


@pytest.mark.parametrize("file", ["identity.json", "cluster.json", "token"])
def test_a_file_that_others_may_read_is_refused(home: Path, file: str) -> None:
    save_cluster(_cluster())
    (home / "token").write_text("edgepp1-")
    (home / file).chmod(0o640)
    with pytest.raises(EdgeppError, match=f"others may read .*{file}") as raised:
        {"identity.json": load_identity, "cluster.json": load_cluster, "token": read_token}[file]()
    assert "chmod 600" in raised.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"version": 2}', '{"version": 1, "secret": 5}', "[" * 100_000, "\udcff", "{" + "\0"],
)
def test_a_damaged_file_is_named(home: Path, text: str) -> None:
    save_cluster(_cluster())
    for file, load in (("identity.json", load_identity), ("cluster.json", load_cluster)):
        (home / file).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(EdgeppError, match=f"{file} is damaged"):
            load()


def test_a_public_key_of_another_pair_is_refused(home: Path) -> None:
    load_identity()
    path = home / "identity.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "public": KeyPair.generate().public}))
    with pytest.raises(EdgeppError, match="damaged"):
        load_identity()


def test_a_cluster_comes_back_as_it_was_saved(home: Path) -> None:
    assert load_cluster() is None
    cluster = _cluster()
    _, token = make_token(cluster)
    cluster = replace(cluster, tokens=(token,))
    save_cluster(cluster)
    assert load_cluster() == cluster
    assert _mode(home / "cluster.json") == 0o600
    assert not [path for path in home.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x" * 16},
        {"id": 5},
        {"coordinator": None},
        {"coordinator": {"node": "0" * 16, "name": "a", "key": "a" * 40}},
        {"members": [{"node": "", "name": "", "key": "short"}]},
        {"members": {}},
        {"tokens": [7]},
        {"addresses": ["nowhere"]},
        {"addresses": [5]},
    ],
    ids=str,
)
def test_a_malformed_cluster_is_refused(home: Path, change: dict[str, object]) -> None:
    save_cluster(_cluster())
    path = home / "cluster.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(EdgeppError, match=r"cluster\.json is damaged"):
        load_cluster()


def test_saving_at_once_leaves_a_whole_file() -> None:
    clusters = [_cluster() for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(save_cluster, clusters))
    assert load_cluster() in clusters


def test_the_newest_addresses_are_remembered() -> None:
    cluster = _cluster()
    for port in range(1, 21):
        cluster = cluster.reached(f"10.0.0.7:{port}")
    assert len(cluster.addresses) == MAX_ADDRESSES
    assert cluster.reached("10.0.0.7:18").addresses[:3] == ("10.0.0.7:18", "10.0.0.7:20", "10.0.0.7:19")


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(UsageError, match="cannot make"):
        config_dir()


def test_a_token_round_trip() -> None:
    cluster = _cluster()
    text, member = make_token(cluster)
    token = parse_token(f" {text}\n")
    assert (token.cluster, token.coordinator) == (cluster.id, cluster.coordinator.key)
    assert (token.keys.public, member.name) == (member.key, "token-1")
    assert token.keys.secret not in repr(token)
    assert make_token(replace(cluster, tokens=(member,)))[1].name == "token-2"


def test_a_damaged_token_is_named_and_never_shown() -> None:
    text, _ = make_token(_cluster())
    for damaged, message in (
        (text[:-1], "cut off: 1 characters"),
        (text[:20], "cut off"),
        (text + "A", "damaged"),
        (text[:30] + ("A" if text[30] != "A" else "B") + text[31:], "damaged"),
        (text[:30] + "*" + text[31:], "a character that no token has"),
        ("7-tango-lemon", "not a token"),
        ("", "not a token"),
    ):
        with pytest.raises(UsageError, match=message) as raised:
            parse_token(damaged)
        assert text[20:40] not in str(raised.value) + raised.value.hint


def test_where_a_token_is_read_from(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_token() is None
    descriptor = os.open(config_dir() / "token", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, b"beside\n")
    os.close(descriptor)
    assert read_token() == "beside"
    monkeypatch.setenv("EDGEPP_TOKEN_FILE", str(tmp_path / "named"))
    with pytest.raises(EdgeppError, match="no token file"):
        read_token()
    (tmp_path / "named").write_text("named")
    (tmp_path / "named").chmod(0o600)
    assert read_token() == "named"
    monkeypatch.setenv("EDGEPP_TOKEN", "given")
    assert read_token() == "given"


@pytest.mark.parametrize("kind", ["folder", "pipe"])
@pytest.mark.parametrize("file", ["identity.json", "cluster.json", "token"])
def test_a_folder_or_pipe_in_place_of_a_file_is_refused_at_once(home: Path, file: str, kind: str) -> None:
    path = config_dir() / file
    path.mkdir() if kind == "folder" else os.mkfifo(path, 0o600)
    with pytest.raises(EdgeppError, match=f"{file}: it is a .* where a file should be") as raised:
        {"identity.json": load_identity, "cluster.json": load_cluster, "token": read_token}[file]()
    assert raised.value.hint


def test_a_file_that_is_too_long_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = _cluster()
    save_cluster(cluster)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    with pytest.raises(EdgeppError, match="has more than"):
        load_cluster()
    with pytest.raises(EdgeppError, match="stays as it is"):
        save_cluster(cluster)


@pytest.mark.parametrize(
    "view",
    [
        {},
        {"version": 1, "plan_version": 1, "heard": "now"},
        {"version": 1, "plan_version": 1, "heard": "now", "members": [{"name": "a", "state": 1, "address": "x"}]},
        {"version": "1", "plan_version": 1, "heard": "now", "members": []},
    ],
)
def test_a_malformed_view_is_neither_saved_nor_loaded(home: Path, view: dict[str, object]) -> None:
    member = {"name": "a", "state": "ready", "address": "x"}
    whole = {"version": 1, "plan_version": 2, "heard": "now", "members": [member]}
    save_view(whole)
    save_view(view)
    assert load_view() == whole
    (home / "view.json").write_text(json.dumps({"version": 1, "view": view}))
    assert load_view() is None


def test_one_node_runs_for_a_configuration(home: Path) -> None:
    assert node_lock_holder() == ""
    with hold_node_lock("edgepp join"):
        assert node_lock_holder() == f"`edgepp join` (process {os.getpid()})"
        assert not wait_until_ended(0)
        with (
            pytest.raises(UsageError, match="is a node already: `edgepp join`") as raised,
            hold_node_lock("edgepp serve"),
        ):
            pass
        assert "edgepp leave" in raised.value.hint
    assert wait_until_ended(0)
    with hold_node_lock("edgepp serve"):
        assert "edgepp serve" in node_lock_holder()


def test_the_home_of_an_unknown_user_is_one_error_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPP_HOME", "~no-such-user-here/edgepp")
    with pytest.raises(UsageError, match="cannot make"):
        config_dir()


@pytest.mark.parametrize("make", [Path.mkdir, lambda lock: lock.symlink_to(lock)], ids=["folder", "link to itself"])
def test_a_lock_of_the_wrong_kind_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "cluster.lock")
    with pytest.raises(EdgeppError, match=r"cluster\.lock"), files.changing(tmp_path / "cluster.json"):
        raise AssertionError("there is no lock")
