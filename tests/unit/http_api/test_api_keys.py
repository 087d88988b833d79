"""The stored API keys."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from edgepp.errors import EdgeppError, UsageError
from edgepp.http_api import api_keys
from edgepp.http_api.api_keys import KeyRing, add_key, load_keys, revoke_key


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    return tmp_path


def owner(ring: KeyRing, secret: str) -> str | None:
    key = ring.find(secret)
    return key.name if key is not None else None


def test_a_key_administers_only_if_it_was_made_so(home: Path) -> None:
    add_key("guest")
    secret = add_key("owner", administers=True)
    assert [(key.name, key.administers) for key in load_keys()] == [("guest", False), ("owner", True)]
    found = KeyRing().find(secret)
    assert found is not None
    assert found.administers
    file = home / "api_keys.json"
    file.write_text(file.read_text().replace("true", "1"))
    with pytest.raises(EdgeppError, match="api_keys"):
        load_keys()


def test_a_key_of_an_earlier_version_administers_nothing(home: Path) -> None:
    secret = add_key("old")
    file = home / "api_keys.json"
    file.write_text(file.read_text().replace(', "administers": false', "").replace('"administers": false,', ""))
    found = KeyRing().find(secret)
    assert found is not None
    assert not found.administers


def test_a_key_is_random_and_stored_as_a_digest_that_only_its_owner_may_read(home: Path) -> None:
    first, second = add_key("one"), add_key("two")
    assert first != second
    assert first.startswith("edgepp-")
    assert len(first) >= len("edgepp-") + 43  # 256 bits in base64
    file = home / "api_keys.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert first not in file.read_text()
    assert first.removeprefix("edgepp-") not in file.read_text()
    assert [key.name for key in load_keys()] == ["one", "two"]
    assert owner(KeyRing(), first) == "one"
    assert owner(KeyRing(), second) == "two"
    assert owner(KeyRing(), "edgepp-") is None


def test_a_revoked_key_is_unknown_and_its_name_is_free_again() -> None:
    old = add_key("one")
    ring = KeyRing()
    assert owner(ring, old) == "one"
    revoke_key("one")
    assert owner(ring, old) is None
    new = add_key("one")
    assert (owner(ring, old), owner(ring, new)) == (None, "one")


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "-x", "a/b", "a\n", "ü"])
def test_a_name_is_plain(name: str) -> None:
    with pytest.raises(UsageError, match="no name of a key"):
        add_key(name)


def test_a_name_is_used_once_and_must_be_known() -> None:
    add_key("one")
    with pytest.raises(UsageError, match="already"):
        add_key("one")
    with pytest.raises(UsageError, match="no key named"):
        revoke_key("two")


def test_there_are_so_many_keys_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "MAX_KEYS", 2)
    add_key("one")
    add_key("two")
    with pytest.raises(UsageError, match="2 keys"):
        add_key("three")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"version": 1}', '{"version": 1, "keys": [{"name": "x", "digest": "y", "created_s": 1}]}'],
)
def test_a_damaged_file_is_named(home: Path, text: str) -> None:
    file = home / "api_keys.json"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(EdgeppError, match="api_keys"):
        load_keys()
    with pytest.raises(EdgeppError, match="api_keys"):
        KeyRing().find("x")
