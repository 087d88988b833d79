"""Who this node is and which cluster it belongs to, kept in files that only their owner can read."""

from __future__ import annotations

import logging
import os
import platform
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any

from edgepp.cluster.state_files import changing, config_dir, load, save
from edgepp.errors import EdgeppError, PairingError, UsageError
from edgepp.wire.security import KeyPair
from edgepp.wire.text_fields import is_key
from edgepp.wire.transport import Address

NAME_CHARACTERS = 40
MAX_ADDRESSES = 8
"""Addresses of a coordinator that are remembered."""
MAX_MEMBERS = 1024
"""Nodes that are paired with one cluster, and keys of which it is remembered that they are revoked."""
MAX_TOKENS = 64
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """This node."""

    node: str
    """16 hexadecimal digits that follow from the public key; a copied configuration has them too."""
    name: str
    keys: KeyPair


@dataclass(frozen=True)
class PairedNode:
    """A node, or the holder of a token, as others know it."""

    node: str
    name: str
    key: str
    token: str = ""
    """The ``node`` of the token by which it came; empty where a code let it in."""

    @classmethod
    def of(cls, name: str, key: str, token: str = "") -> PairedNode:
        """The member with this public key; ``name`` may come from anywhere."""
        return cls(node_id(key), clean_name(name), key, token)


@dataclass(frozen=True)
class Cluster:
    """A cluster: to a member its coordinator and where it was; to the coordinator also everyone who may take part."""

    id: str
    coordinator: PairedNode
    members: tuple[PairedNode, ...] = ()
    tokens: tuple[PairedNode, ...] = ()
    addresses: tuple[str, ...] = ()
    """``HOST:PORT`` of the coordinator, newest first."""
    revoked: tuple[PairedNode, ...] = ()
    """Nodes that only a new code lets in again."""
    withdrawn: tuple[PairedNode, ...] = ()
    """Tokens that let nobody in any more."""

    def reached(self, address: str) -> Cluster:
        """The same cluster, its coordinator last seen at ``address``."""
        older = [known for known in self.addresses if known != address]
        return replace(self, addresses=(address, *older)[:MAX_ADDRESSES])


_MAX_ENTRIES: Mapping[str, int] = {
    "members": MAX_MEMBERS,
    "tokens": MAX_TOKENS,
    "revoked": MAX_MEMBERS,
    "withdrawn": MAX_MEMBERS,
}
"""The longest lists of a cluster that are kept."""


def node_id(key: str) -> str:
    """A node's id, from its public key."""
    return blake2b(key.encode(), digest_size=8).hexdigest()


def clean_name(text: str) -> str:
    """``text`` as a name that is safe to print: printable, on one line, not too long and not empty."""
    kept = "".join(character for character in text if character.isprintable()).strip()
    return kept[:NAME_CHARACTERS].rstrip() or "unnamed"


def load_identity() -> Identity:
    """This node's identity, made at first use. ``EDGEPP_NAME`` overrides its name, the machine's short host name.

    Raises:
        EdgeppError: the file is damaged, or others may read it.
    """
    path = config_dir() / "identity.json"
    keys = load(path, _key_pair)
    if keys is None:
        with changing(path):
            keys = load(path, _key_pair)  # another process may have been first
            if keys is None:
                keys = KeyPair.generate()
                save(path, {"public": keys.public, "secret": keys.secret}, _key_pair)
    name = clean_name(os.environ.get("EDGEPP_NAME") or platform.node().split(".")[0])
    return Identity(node_id(keys.public), name, keys)


def new_cluster(identity: Identity) -> Cluster:
    """A cluster with a random id, coordinated by this node."""
    return Cluster(secrets.token_hex(8), PairedNode.of(identity.name, identity.keys.public))


def load_cluster() -> Cluster | None:
    """The cluster that this node belongs to, or None.

    Raises:
        EdgeppError: the file is damaged, or others may read it.
    """
    return load(config_dir() / "cluster.json", _cluster)


def save_cluster(cluster: Cluster) -> None:
    """Remember the cluster that this node belongs to, in place of any other.

    Raises:
        EdgeppError: it is out of bounds, or cannot be written.
    """
    path = config_dir() / "cluster.json"
    with changing(path):
        save(path, asdict(cluster), _cluster_within_bounds)


def change_cluster(identifier: str, change: Callable[[Cluster], Cluster]) -> Cluster:
    """Change what is remembered of the cluster with this id, unless this node has left it meanwhile; the new state.

    Raises:
        PairingError: this node does not belong to it any more.
        EdgeppError: it is out of bounds, or cannot be written.
    """
    path = config_dir() / "cluster.json"
    with changing(path):
        stored = load(path, _cluster)
        if stored is None or stored.id != identifier:
            raise PairingError("this machine has left the cluster", "join or serve again")
        changed = change(stored)
        if changed != stored:
            save(path, asdict(changed), _cluster_within_bounds)
    return changed


def remember_address(identifier: str, address: Address) -> None:
    """Note where the coordinator of the cluster with this id was reached, if it can be noted: a hint for next time."""
    try:
        change_cluster(identifier, lambda cluster: cluster.reached(str(address)))
    except EdgeppError as error:
        log.info("%s is not remembered: %s", address, error)


def has_left() -> bool:
    """Whether this node belongs to no cluster any more; cheap enough to ask five times a second."""
    try:
        return not (config_dir() / "cluster.json").exists()
    except OSError:
        return False  # a folder that cannot be read for the moment


def forget_cluster() -> None:
    """Belong to no cluster any more, also where the file is damaged.

    Raises:
        EdgeppError: the file cannot be removed.
    """
    path = config_dir() / "cluster.json"
    with changing(path):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise EdgeppError(f"cannot remove {path}: {error.strerror}", "remove it by hand") from error


def load_view() -> dict[str, Any] | None:
    """The cluster as this node last heard of it; None where nothing, or nothing that can be read, is kept of it."""
    try:
        return load(config_dir() / "view.json", _view)
    except EdgeppError as error:
        log.info("%s", error)
        return None


def save_view(view: Mapping[str, Any]) -> None:
    """Remember the cluster as the coordinator describes it, if it can be written: it is only shown to people."""
    path = config_dir() / "view.json"
    try:
        with changing(path):
            save(path, {"view": view}, _view)
    except EdgeppError as error:
        log.info("%s", error)


def _key_pair(stored: Mapping[str, Any]) -> KeyPair | None:
    secret = stored.get("secret")
    if type(secret) is not str or not is_key(secret):
        return None
    keys = KeyPair.of_secret(secret)
    return keys if keys.public == stored.get("public") else None


def _view(stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the coordinator says of the cluster, with what is shown of it; None where any of that is missing."""
    view = stored.get("view")
    if type(view) is not dict or not all(type(view.get(name)) is int for name in ("version", "plan_version")):
        return None
    members = view.get("members")
    if type(view.get("heard")) is not str or type(members) is not list:
        return None
    shown = ("name", "state", "address")
    whole = all(type(one) is dict and all(type(one.get(name)) is str for name in shown) for one in members)
    return view if whole else None


def _cluster_within_bounds(stored: Mapping[str, Any]) -> Cluster | None:
    """What is written: nothing that reading would cut."""
    fits = all(len(stored[name]) <= most for name, most in _MAX_ENTRIES.items())
    return _cluster(stored) if fits and len(stored["addresses"]) <= MAX_ADDRESSES else None


def _cluster(stored: Mapping[str, Any]) -> Cluster | None:
    """What the file holds, or None where it cannot be that.

    Lists that are too long, as an earlier version could write them, lose their end.
    """
    identifier, coordinator = stored.get("id"), _member(stored.get("coordinator"))
    addresses = stored.get("addresses")
    if not is_cluster_id(identifier) or coordinator is None or type(addresses) is not list:
        return None
    known = [_address(one) for one in addresses[:MAX_ADDRESSES]]
    lists: dict[str, tuple[PairedNode, ...]] = {}
    for name, most in _MAX_ENTRIES.items():
        listed = stored.get(name, [] if name in ("revoked", "withdrawn") else None)
        members = [_member(one) for one in listed[:most]] if type(listed) is list else [None]
        if None in members:
            return None
        if len(listed) > most:
            log.warning("of the cluster's %d %s only the first %d are kept", len(listed), name, most)
        lists[name] = tuple(member for member in members if member is not None)
    if None in known:
        return None
    return Cluster(str(identifier), coordinator, addresses=tuple(one for one in known if one is not None), **lists)


def is_cluster_id(value: object) -> bool:
    """Whether ``value`` is 16 hexadecimal digits."""
    return type(value) is str and len(value) == 16 and all(digit in "0123456789abcdef" for digit in value)


def _member(value: object) -> PairedNode | None:
    if type(value) is not dict:
        return None
    name, key, token = value.get("name"), value.get("key"), value.get("token", "")
    if type(name) is not str or type(key) is not str or not is_key(key) or value.get("node") != node_id(key):
        return None
    return PairedNode.of(name, key, token) if token == "" or is_cluster_id(token) else None


def _address(value: object) -> str | None:
    try:
        return str(Address.parse(value)) if type(value) is str else None
    except UsageError:
        return None
