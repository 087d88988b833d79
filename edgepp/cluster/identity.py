"""This node's identity and the cluster that it belongs to, in files that only their owner can read."""

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
from edgepp.wire.address import Address
from edgepp.wire.security import KeyPair
from edgepp.wire.text_fields import is_key

MAX_NAME_CHARACTERS = 40
MAX_ADDRESSES = 8
"""Remembered addresses of a coordinator."""
MAX_MEMBERS = 1024
"""Paired nodes of one cluster, and also its revoked nodes and withdrawn tokens."""
MAX_TOKENS = 64
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """This node's id, name and keys."""

    node: str
    """The node id: 16 hexadecimal digits that follow from the public key."""
    name: str
    keys: KeyPair


@dataclass(frozen=True)
class PairedNode:
    """A node, or a token, as a cluster knows it."""

    node: str
    name: str
    key: str
    token: str = ""
    """The ``node`` of the token that let the node in; empty where a code did."""

    @classmethod
    def of(cls, name: str, key: str, token: str = "") -> PairedNode:
        """The entry for a public key; ``name`` may come from the network and is made safe to print."""
        return cls(node_id(key), clean_name(name), key, token)


@dataclass(frozen=True)
class Cluster:
    """A cluster: its coordinator's key and addresses; on the coordinator also paired and revoked nodes and tokens."""

    id: str
    coordinator: PairedNode
    members: tuple[PairedNode, ...] = ()
    tokens: tuple[PairedNode, ...] = ()
    addresses: tuple[str, ...] = ()
    """Addresses of the coordinator as ``HOST:PORT``, newest first."""
    revoked: tuple[PairedNode, ...] = ()
    """Nodes that are admitted again only with a new code."""
    withdrawn: tuple[PairedNode, ...] = ()
    """Tokens that are no longer valid."""

    def reached(self, address: str) -> Cluster:
        """This cluster with ``address`` as the coordinator's newest address."""
        older = [known for known in self.addresses if known != address]
        return replace(self, addresses=(address, *older)[:MAX_ADDRESSES])


_MAX_ENTRIES: Mapping[str, int] = {
    "members": MAX_MEMBERS,
    "tokens": MAX_TOKENS,
    "revoked": MAX_MEMBERS,
    "withdrawn": MAX_MEMBERS,
}
"""The longest lists in the file of a cluster."""


def node_id(key: str) -> str:
    """The node id of a public key: 16 hexadecimal digits of its BLAKE2b hash."""
    return blake2b(key.encode(), digest_size=8).hexdigest()


def clean_name(text: str) -> str:
    """``text`` as a name that is safe to print: one line of 1 to ``MAX_NAME_CHARACTERS`` printable characters."""
    kept = "".join(character for character in text if character.isprintable()).strip()
    return kept[:MAX_NAME_CHARACTERS].rstrip() or "unnamed"


def load_identity() -> Identity:
    """Load this node's identity; make one at first use.

    The name is ``EDGEPP_NAME``, or the machine's short host name.

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
    """Make a cluster with a random id, coordinated by this node."""
    return Cluster(secrets.token_hex(8), PairedNode.of(identity.name, identity.keys.public))


def load_cluster() -> Cluster | None:
    """Load the cluster that this node belongs to; None where it belongs to none.

    Raises:
        EdgeppError: the file is damaged, or others may read it.
    """
    return load(config_dir() / "cluster.json", _cluster)


def save_cluster(cluster: Cluster) -> None:
    """Save the cluster that this node belongs to, in place of any other.

    Raises:
        EdgeppError: a list of the cluster is too long, or the file cannot be written.
    """
    path = config_dir() / "cluster.json"
    with changing(path):
        save(path, asdict(cluster), _cluster_within_bounds)


def change_cluster(identifier: str, change: Callable[[Cluster], Cluster]) -> Cluster:
    """Change the saved cluster with this id; returns the changed cluster.

    Raises:
        PairingError: this node no longer belongs to that cluster.
        EdgeppError: a list of the cluster is too long, or the file cannot be written.
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
    """Save the address at which a cluster's coordinator was reached. Failures are ignored: the address is a hint."""
    try:
        change_cluster(identifier, lambda cluster: cluster.reached(str(address)))
    except EdgeppError as error:
        log.info("the coordinator's address %s is not saved: %s", address, error)


def has_left() -> bool:
    """Whether this node belongs to no cluster; cheap enough for five calls per second."""
    try:
        return not (config_dir() / "cluster.json").exists()
    except OSError:
        return False  # the folder cannot be read at the moment


def forget_cluster() -> None:
    """Delete the cluster that this node belongs to, even a damaged file.

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
    """Load the last view of the cluster that this node received; None where there is none, or it is damaged."""
    try:
        return load(config_dir() / "view.json", _view)
    except EdgeppError as error:
        log.info("%s", error)
        return None


def save_view(view: Mapping[str, Any]) -> None:
    """Save the coordinator's view of the cluster. Failures are ignored: the view is only shown to people."""
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
    """The view in the file; None where a field that is shown to people is missing or malformed."""
    view = stored.get("view")
    if type(view) is not dict or not all(type(view.get(name)) is int for name in ("version", "plan_version")):
        return None
    members = view.get("members")
    if type(view.get("heard")) is not str or type(members) is not list:
        return None
    shown = ("name", "state", "address")
    valid = all(type(one) is dict and all(type(one.get(name)) is str for name in shown) for one in members)
    return view if valid else None


def _cluster_within_bounds(stored: Mapping[str, Any]) -> Cluster | None:
    """The cluster to write; None where a list is longer than what is read back."""
    fits = all(len(stored[name]) <= max_entries for name, max_entries in _MAX_ENTRIES.items())
    return _cluster(stored) if fits and len(stored["addresses"]) <= MAX_ADDRESSES else None


def _cluster(stored: Mapping[str, Any]) -> Cluster | None:
    """The cluster in the file; None where a field is missing or malformed.

    The end of a list that is too long, as an earlier version could write it, is dropped.
    """
    identifier, coordinator = stored.get("id"), _member(stored.get("coordinator"))
    addresses = stored.get("addresses")
    if not is_cluster_id(identifier) or coordinator is None or type(addresses) is not list:
        return None
    known = [_address(one) for one in addresses[:MAX_ADDRESSES]]
    lists: dict[str, tuple[PairedNode, ...]] = {}
    for name, max_entries in _MAX_ENTRIES.items():
        listed = stored.get(name, [] if name in ("revoked", "withdrawn") else None)
        members = [_member(one) for one in listed[:max_entries]] if type(listed) is list else [None]
        if None in members:
            return None
        if len(listed) > max_entries:
            log.warning("of the cluster's %d %s only the first %d are kept", len(listed), name, max_entries)
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
