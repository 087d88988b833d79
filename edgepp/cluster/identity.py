"""Who this node is and which cluster it belongs to, kept in files that only their owner can read."""

from __future__ import annotations

import json
import os
import platform
import secrets
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_config_path

from edgepp.errors import EdgeppError, UsageError
from edgepp.wire.security import KeyPair
from edgepp.wire.transport import Address
from edgepp.wire.values import is_key

NAME_CHARACTERS = 40
ADDRESSES = 8
"""Addresses of a coordinator that are remembered."""
_MOST_MEMBERS = 4096


@dataclass(frozen=True)
class Identity:
    """This node."""

    node: str
    """16 hexadecimal digits that follow from the public key; a copied configuration has them too."""
    name: str
    keys: KeyPair


@dataclass(frozen=True)
class Member:
    """A node, or the holder of a token, as others know it."""

    node: str
    name: str
    key: str

    @classmethod
    def of(cls, name: str, key: str) -> Member:
        """The member with this public key; ``name`` may come from anywhere."""
        return cls(node_id(key), clean_name(name), key)


@dataclass(frozen=True)
class Cluster:
    """A cluster: to a member its coordinator and where it was; to the coordinator also everyone who may take part."""

    id: str
    coordinator: Member
    members: tuple[Member, ...] = ()
    tokens: tuple[Member, ...] = ()
    addresses: tuple[str, ...] = ()
    """``HOST:PORT`` of the coordinator, newest first."""

    def reached(self, address: str) -> Cluster:
        """The same cluster, its coordinator last seen at ``address``."""
        older = [known for known in self.addresses if known != address]
        return replace(self, addresses=(address, *older)[:ADDRESSES])


def node_id(key: str) -> str:
    """A node's id, from its public key."""
    return blake2b(key.encode(), digest_size=8).hexdigest()


def clean_name(text: str) -> str:
    """``text`` as a name that is safe to print: printable, on one line, not too long and not empty."""
    kept = "".join(character for character in text if character.isprintable()).strip()
    return kept[:NAME_CHARACTERS].rstrip() or "unnamed"


def config_dir() -> Path:
    """The folder of identity and cluster: ``EDGEPP_HOME``, or where the platform keeps configuration.

    Raises:
        UsageError: it cannot be made.
    """
    home = os.environ.get("EDGEPP_HOME")
    path = Path(home).expanduser() if home else user_config_path("edgepp", appauthor=False)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {path}: {error.strerror}", "set EDGEPP_HOME to a folder of yours") from error
    return path


def load_identity() -> Identity:
    """This node's identity, made at first use. ``EDGEPP_NAME`` overrides its name, the machine's short host name.

    Raises:
        EdgeppError: the file is damaged, or others may read it.
    """
    path = config_dir() / "identity.json"
    with _locked(path):
        stored = _load(path)
        if stored is None:
            keys = KeyPair.generate()
            _write_private(path, {"version": 1, "public": keys.public, "secret": keys.secret})
        else:
            keys = _key_pair(path, stored)
    name = clean_name(os.environ.get("EDGEPP_NAME") or platform.node().split(".")[0])
    return Identity(node_id(keys.public), name, keys)


def new_cluster(identity: Identity) -> Cluster:
    """A cluster with a random id, coordinated by this node."""
    return Cluster(secrets.token_hex(8), Member.of(identity.name, identity.keys.public))


def load_cluster() -> Cluster | None:
    """The cluster that this node belongs to, or None.

    Raises:
        EdgeppError: the file is damaged, or others may read it.
    """
    path = config_dir() / "cluster.json"
    stored = _load(path)
    if stored is None:
        return None
    cluster = _cluster(stored)
    if cluster is None:
        raise _damaged(path)
    return cluster


def save_cluster(cluster: Cluster) -> None:
    """Remember the cluster that this node belongs to, in place of any other."""
    path = config_dir() / "cluster.json"
    with _locked(path):
        _write_private(path, {"version": 1, **asdict(cluster)})


def forget_cluster() -> Cluster | None:
    """Belong to no cluster any more; the one that was left, or None."""
    path = config_dir() / "cluster.json"
    with _locked(path):
        cluster = load_cluster()
        path.unlink(missing_ok=True)
    return cluster


def load_view() -> dict[str, Any] | None:
    """The cluster as this node last heard of it, or None."""
    stored = _load(config_dir() / "view.json")
    view = None if stored is None else stored.get("view")
    return view if isinstance(view, dict) else None


def save_view(view: Mapping[str, Any]) -> None:
    """Remember the cluster as the coordinator describes it."""
    path = config_dir() / "view.json"
    with _locked(path):
        _write_private(path, {"version": 1, "view": view})


def read_private(path: Path) -> str | None:
    """The text of a file that only its owner may read; None where there is none.

    Raises:
        EdgeppError: others may read it, or it cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not be waited for
        with open(handle, encoding="utf-8") as file:  # noqa: PTH123 - a descriptor has no Path
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                raise EdgeppError(f"{path} is no regular file", "move it away, and invite or join again")
            if mode & 0o077:
                raise EdgeppError(f"others may read {path}, which holds secrets", f"run: chmod 600 {path}")
            return file.read(1 << 24)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EdgeppError(
            f"cannot read {path}: {error.strerror}", "move it away, or set EDGEPP_HOME to another folder"
        ) from error
    except UnicodeDecodeError as error:
        raise _damaged(path) from error


def _locked(path: Path) -> FileLock:
    return FileLock(path.with_suffix(".lock"), timeout=10, mode=0o600)


def _write_private(path: Path, value: Mapping[str, Any]) -> None:
    """Replace ``path`` at once: whoever reads sees the old one or the new one, also after a loss of power."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
        try:
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor has no Path
                json.dump(value, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise EdgeppError(f"cannot write {path}: {error.strerror}") from error


def _load(path: Path) -> dict[str, Any] | None:
    text = read_private(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if type(value) is not dict or value.get("version") != 1:
        raise _damaged(path)
    return value


def _damaged(path: Path) -> EdgeppError:
    return EdgeppError(f"{path} is damaged or of another version", "move it away, and invite or join again")


def _key_pair(path: Path, stored: Mapping[str, Any]) -> KeyPair:
    secret = stored.get("secret")
    if type(secret) is not str or not is_key(secret):
        raise _damaged(path)
    keys = KeyPair.of_secret(secret)
    if keys.public != stored.get("public"):
        raise _damaged(path)
    return keys


def _cluster(stored: Mapping[str, Any]) -> Cluster | None:
    """What the file holds, or None where it cannot be that."""
    identifier, lists = stored.get("id"), [stored.get(name) for name in ("members", "tokens", "addresses")]
    if not is_cluster_id(identifier) or not all(type(part) is list and len(part) <= _MOST_MEMBERS for part in lists):
        return None
    coordinator = _member(stored.get("coordinator"))
    members, tokens = ([_member(one) for one in part or ()] for part in lists[:2])
    addresses = [_address(one) for one in lists[2] or ()]
    if coordinator is None or None in members or None in tokens or None in addresses:
        return None
    return Cluster(
        str(identifier),
        coordinator,
        tuple(member for member in members if member is not None),
        tuple(member for member in tokens if member is not None),
        tuple(address for address in addresses if address is not None)[:ADDRESSES],
    )


def is_cluster_id(value: object) -> bool:
    """Whether ``value`` is 16 hexadecimal digits."""
    return type(value) is str and len(value) == 16 and all(digit in "0123456789abcdef" for digit in value)


def _member(value: object) -> Member | None:
    if type(value) is not dict:
        return None
    name, key = value.get("name"), value.get("key")
    if type(name) is not str or type(key) is not str or not is_key(key) or value.get("node") != node_id(key):
        return None
    return Member.of(name, key)


def _address(value: object) -> str | None:
    try:
        return str(Address.parse(value)) if type(value) is str else None
    except UsageError:
        return None
