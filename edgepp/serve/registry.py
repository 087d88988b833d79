"""Who may take part in a cluster: its book of members and tokens, kept on disk, and the gate that it opens."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgepp.cluster.identity import Cluster, Identity, Member, save_cluster
from edgepp.cluster.tokens import make_token
from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.wire.messages import Adopt
from edgepp.wire.security import Gate
from edgepp.wire.transport import Address
from edgepp.wire.values import is_key


class Registry:
    """The coordinator's book. Its methods may be called from any thread."""

    def __init__(self, identity: Identity, cluster: Cluster, gate: Gate) -> None:
        self._identity = identity
        self._gate = gate
        self._lock = threading.Lock()
        self.cluster = cluster
        self._admit()

    def reached_at(self, address: Address) -> None:
        """Note where this machine's own commands find the coordinator."""
        with self._lock:
            self._save(self.cluster.reached(str(address)))

    @property
    def keys(self) -> set[str]:
        """The keys of this node and of everyone who is paired."""
        return {self._identity.keys.public, *(member.key for member in self.cluster.members)}

    @property
    def nodes(self) -> set[str]:
        """The ids of everyone who is paired."""
        return {member.node for member in self.cluster.members}

    def node_of(self, key: str) -> str:
        """The id of the node with this key.

        Raises:
            UsageError: it is not, or no longer, a member's.
        """
        if key == self._identity.keys.public:
            return self._identity.node
        for member in self.cluster.members:
            if member.key == key:
                return member.node
        raise UsageError("this key is not, or no longer, a member's", "ask for a new invitation")

    def pair(self, member: Member) -> None:
        """Let a node take part from now on."""
        with self._lock:
            others = tuple(other for other in self.cluster.members if other.node != member.node)
            self._save(replace(self.cluster, members=(*others, member)))

    def adopt(self, token_key: str, host: str, message: Adopt) -> str:
        """Pair the node at ``host`` that proved a token's key; what to tell people, empty where it was paired already.

        Raises:
            UsageError: the key is no token's.
            RemoteProtocolError: the node's own key is malformed.
        """
        token = next((token for token in self.cluster.tokens if token.key == token_key), None)
        if token is None:
            raise UsageError("only a token's holder can be adopted")
        if not is_key(message.key):
            raise RemoteProtocolError("a malformed key")
        member = Member.of(message.name, message.key)
        if member in self.cluster.members:
            return ""
        self.pair(member)
        return f"{member.name} at {host} joined by {token.name}"

    def token(self) -> dict[str, Any]:
        """A new token: its text, which is kept nowhere, and its name."""
        with self._lock:
            text, token = make_token(self.cluster)
            self._save(replace(self.cluster, tokens=(*self.cluster.tokens, token)))
        return {"token": text, "name": token.name}

    def revoke(self, name: str) -> Member:
        """Admit a node or token no longer; whom.

        Raises:
            UsageError: ``name`` is that of none, or of more than one.
        """
        with self._lock:
            paired = (*self.cluster.members, *self.cluster.tokens)
            found = [one for one in paired if name and (name == one.name or one.node.startswith(name))]
            if len(found) != 1:
                what = "more than one node or token" if found else "no node or token"
                raise UsageError(f"{what} is called '{name}'", "see `edgepp peers` for names and ids")
            members = tuple(one for one in self.cluster.members if one not in found)
            tokens = tuple(one for one in self.cluster.tokens if one not in found)
            self._save(replace(self.cluster, members=members, tokens=tokens))
        return found[0]

    def peers(self, states: Mapping[str, str]) -> dict[str, Any]:
        """Everyone who is paired, with their ``states`` by node id where they are here."""
        peers = [
            {"node": one.node, "name": one.name, "key": one.key, "state": states.get(one.node, "away")}
            for one in self.cluster.members
        ]
        return {"cluster": self.cluster.id, "peers": peers, "tokens": [token.name for token in self.cluster.tokens]}

    def _save(self, cluster: Cluster) -> None:
        self.cluster = cluster
        save_cluster(cluster)
        self._admit()

    def _admit(self) -> None:
        self._gate.admit(self.keys | {token.key for token in self.cluster.tokens})
