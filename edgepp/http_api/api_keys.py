"""The API keys of this machine: random secrets that are shown once and stored as SHA-256.

A slow hash protects passwords, which can be guessed; a secret of 256 random bits cannot, so a fast hash is right and
costs no request any time.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgepp.cluster.state_files import changing, config_dir, load, save
from edgepp.errors import UsageError

PREFIX = "edgepp-"
MAX_KEYS = 256
_FILE = "api_keys.json"
_SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ApiKey:
    """A stored key: its owner's name, and the digest by which its secret is recognised."""

    name: str
    digest: str
    """Hexadecimal SHA-256 of the secret."""
    created_s: int
    """Seconds since 1970."""
    administers: bool = False
    """Whether the key may change the cluster: invite, drain, change the model."""


def add_key(name: str, *, administers: bool = False) -> str:
    """Make a key, and return its secret, which is stored nowhere; one that ``administers`` may change the cluster.

    Raises:
        UsageError: the name is malformed or in use, or there are too many keys.
        EdgeppError: the key cannot be stored.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"{name[:80]!r} is no name of a key", "use up to 64 letters, digits, dots, hyphens and @")
    with changing(_path()):
        keys = load_keys()
        if any(key.name == name for key in keys):
            raise UsageError(
                f"there is a key named {name} already", f"choose another name, or `edgepp keys revoke {name}`"
            )
        if len(keys) >= MAX_KEYS:
            raise UsageError(f"there are {MAX_KEYS} keys already", "drop some with `edgepp keys revoke NAME`")
        secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        _store((*keys, ApiKey(name, _digest(secret), int(time.time()), administers)))
    return secret


def revoke_key(name: str) -> None:
    """Forget a key; running servers refuse the key from the next request on.

    Raises:
        UsageError: there is no key of this name.
        EdgeppError: the file cannot be changed.
    """
    with changing(_path()):
        keys = load_keys()
        kept = tuple(key for key in keys if key.name != name)
        if len(kept) == len(keys):
            raise UsageError(f"there is no key named {name[:80]!r}", "`edgepp keys list` shows the names")
        _store(kept)


def load_keys() -> tuple[ApiKey, ...]:
    """All keys, oldest first.

    Raises:
        EdgeppError: the file is damaged, others may read it, or it cannot be read.
    """
    return load(_path(), _keys) or ()


class KeyRing:
    """The stored keys for a running server, read again whenever the file has changed."""

    def __init__(self) -> None:
        self._file = _path()
        self._seen: tuple[int, int, int] | None = None
        self._keys: tuple[ApiKey, ...] = ()

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret; None if there is none.

        Raises:
            EdgeppError: the file of the keys cannot be read.
        """
        digest, found = _digest(secret), None
        for key in self._current():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _current(self) -> tuple[ApiKey, ...]:
        try:
            state = self._file.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, ()
            return ()
        seen = (state.st_ino, state.st_mtime_ns, state.st_size)
        if seen != self._seen:
            self._keys = load(self._file, _keys) or ()
            self._seen = seen
        return self._keys


def _path() -> Path:
    return config_dir() / _FILE


def _digest(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _store(keys: tuple[ApiKey, ...]) -> None:
    save(_path(), {"keys": [asdict(key) for key in keys]}, _keys)


def _keys(stored: Mapping[str, Any]) -> tuple[ApiKey, ...] | None:
    entries = stored.get("keys")
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        return None
    keys = tuple(key for key in map(_key, entries) if key is not None)
    return keys if len(keys) == len(entries) == len({key.name for key in keys}) else None


def _key(entry: object) -> ApiKey | None:
    match entry:
        case {"name": str(name), "digest": str(digest), "created_s": int(created_s), **rest}:
            administers = rest.get("administers", False)
            if _NAME.fullmatch(name) and _DIGEST.fullmatch(digest) and isinstance(administers, bool):
                return ApiKey(name, digest, created_s, administers)
    return None
