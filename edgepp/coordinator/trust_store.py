"""Who may take part in a cluster: its book of members, tokens and revoked keys, on disk, and the gate that it opens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgepp.cluster.identity import (
    MAX_MEMBERS,
    MAX_TOKENS,
    Cluster,
    Identity,
    PairedNode,
    change_cluster,
    remember_address,
    save_cluster,
)
from edgepp.cluster.pairing.tokens import make_token
from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.events import NodePaired
from edgepp.wire.messages import Adopt
from edgepp.wire.security import Gate
from edgepp.wire.text_fields import is_key
from edgepp.wire.transport import Address

TOKEN_MEMBERS = 128
"""Nodes that one token lets in, revoked ones counted: whoever finds a token can add no more."""


@dataclass(frozen=True)
class Adoption:
    """What becomes of a token holder's wish."""

    paired: NodePaired | None = None
    """What to tell people; empty where the node was a member already."""
    refusal: str = ""
    """Why the node is not let in; empty where it is."""


class TrustStore:
    """The coordinator's book. Its methods may be called from any thread.

    A change counts once it is on disk; where it cannot be written, nothing has changed.
    """

    def __init__(self, identity: Identity, cluster: Cluster, gate: Gate) -> None:
        """Take over ``cluster`` as it was read.

        Raises:
            EdgeppError: it cannot be written back.
        """
        self._identity = identity
        self._gate = gate
        self._lock = threading.Lock()
        self.cluster = cluster
        save_cluster(cluster)
        self._admit()

    def reached_at(self, address: Address) -> None:
        """Note where this machine's own commands find the coordinator."""
        remember_address(self.cluster.id, address)

    @property
    def keys(self) -> set[str]:
        """The keys of this node and of everyone who is paired."""
        return {self._identity.keys.public, *(member.key for member in self.cluster.members)}

    @property
    def nodes(self) -> set[str]:
        """The ids of everyone who is paired."""
        return {member.node for member in self.cluster.members}

    def away(self, present: Collection[str]) -> list[str]:
        """The names of everyone who is paired and whose node id is not among ``present``."""
        return [member.name for member in self.cluster.members if member.node not in present]

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

    def check_room(self) -> None:
        """See whether one more node can be let in.

        Raises:
            UsageError: the cluster has as many as are kept.
        """
        if len(self.cluster.members) >= MAX_MEMBERS:
            raise UsageError(
                f"{MAX_MEMBERS} nodes are paired with this cluster already",
                "revoke some that are away: `edgepp peers`",
            )

    def pair(self, member: PairedNode) -> None:
        """Let a node take part from now on that proved a code, also one whose key was revoked.

        Raises:
            UsageError: the cluster has as many nodes as are kept.
            EdgeppError: it cannot be written.
        """
        with self._lock:
            others = tuple(other for other in self.cluster.members if other.node != member.node)
            if len(others) == len(self.cluster.members):
                self.check_room()
            revoked = tuple(one for one in self.cluster.revoked if one.node != member.node)
            self._change(lambda cluster: replace(cluster, members=(*others, member), revoked=revoked))

    def adopt(self, token_key: str, host: str, message: Adopt) -> Adoption:
        """Pair the node at ``host`` that proved a token's key, unless its own key was revoked.

        Raises:
            UsageError: the key is no token's.
            RemoteProtocolError: the node's own key is malformed.
            EdgeppError: it cannot be written.
        """
        if not is_key(message.key):
            raise RemoteProtocolError("a malformed key")
        with self._lock:
            book = self.cluster
            token = next((token for token in book.tokens if token.key == token_key), None)
            if token is None:
                raise UsageError("only a token's holder can be adopted")
            if any(message.key == one.key for one in (*book.members, book.coordinator)):
                return Adoption()
            if refusal := self._refusal(token, message.key):
                return Adoption(refusal=refusal)
            member = PairedNode.of(message.name, message.key, token.node)
            self._change(lambda cluster: replace(cluster, members=(*book.members, member)))
        return Adoption(paired=NodePaired(member.name, host, token.name))

    def _refusal(self, token: PairedNode, key: str) -> str:
        book = self.cluster
        if any(key == one.key for one in book.revoked):
            return f"{self._identity.name} revoked this machine's key, which only a code of `edgepp invite` lifts"
        if len(book.revoked) >= MAX_MEMBERS:  # an older one may have been forgotten
            return f"{MAX_MEMBERS} keys are revoked, so that only a code of `edgepp invite` lets machines in"
        if sum(one.token == token.node for one in (*book.members, *book.revoked)) >= TOKEN_MEMBERS:
            return f"{token.name} has let in {TOKEN_MEMBERS} machines, which is all that one token does"
        if len(book.members) >= MAX_MEMBERS:
            return f"{MAX_MEMBERS} nodes are paired with this cluster already"
        return ""

    def token(self) -> dict[str, Any]:
        """A new token: its text, which is kept nowhere, and its name.

        Raises:
            UsageError: there are as many as are kept.
        """
        with self._lock:
            tokens = self.cluster.tokens
            if len(tokens) >= MAX_TOKENS:
                raise UsageError(f"there are {MAX_TOKENS} tokens already", "withdraw one: `edgepp revoke token-1`")
            text, token = make_token(self.cluster)
            self._change(lambda cluster: replace(cluster, tokens=(*tokens, token)))
        return {"token": text, "name": token.name}

    def revoke(self, name: str, aliases: Mapping[str, str] | None = None) -> PairedNode:
        """Admit a node or token no longer, and keep that its key was revoked; whom.

        ``aliases`` are names by which nodes call themselves now, by node id.

        Raises:
            UsageError: ``name`` is that of none, or of more than one.
        """
        with self._lock:
            gone = self._named(name, aliases or {})

            def without(ones: tuple[PairedNode, ...]) -> tuple[PairedNode, ...]:
                return tuple(one for one in ones if one != gone)

            def change(cluster: Cluster) -> Cluster:
                if gone in cluster.tokens:
                    withdrawn = (*cluster.withdrawn, gone)[-MAX_MEMBERS:]
                    return replace(cluster, tokens=without(cluster.tokens), withdrawn=withdrawn)
                revoked = (*(one for one in cluster.revoked if one.node != gone.node), gone)[-MAX_MEMBERS:]
                return replace(cluster, members=without(cluster.members), revoked=revoked)

            self._change(change)
        return gone

    def forget(self, node: str) -> None:
        """Take out a node that left by its own will: a code or a token lets it in again."""
        with self._lock:
            members = tuple(one for one in self.cluster.members if one.node != node)
            self._change(lambda cluster: replace(cluster, members=members))

    def token_of(self, member: PairedNode) -> str:
        """The name of the token by which a node came, while it still lets others in; else empty."""
        return next((token.name for token in self.cluster.tokens if token.node == member.token), "")

    def peers(self, states: Mapping[str, str]) -> dict[str, Any]:
        """Everyone who is paired, with their ``states`` by node id where they are here; tokens; who is revoked."""
        book = self.cluster
        names = {token.node: token.name for token in (*book.tokens, *book.withdrawn)}

        def described(one: PairedNode) -> dict[str, Any]:
            return {"node": one.node, "name": one.name, "key": one.key, "came_by": names.get(one.token, "")}

        def counted(token: PairedNode) -> dict[str, Any]:
            return {
                "node": token.node,
                "name": token.name,
                "nodes": sum(one.token == token.node for one in book.members),
            }

        return {
            "cluster": book.id,
            "peers": [{**described(one), "state": states.get(one.node, "away")} for one in book.members],
            "tokens": [counted(token) for token in book.tokens],
            "revoked": [described(one) for one in book.revoked],
            "withdrawn": [counted(token) for token in book.withdrawn],
        }

    def _named(self, name: str, aliases: Mapping[str, str]) -> PairedNode:
        """The one that is meant; a whole id goes before any name, since a node may call itself as it likes."""
        paired = (*self.cluster.members, *self.cluster.tokens)
        found = [one for one in paired if name == one.node] or [
            one
            for one in paired
            if name and (name in (one.name, aliases.get(one.node)) or (len(name) >= 4 and one.node.startswith(name)))
        ]
        if len(found) == 1:
            return found[0]
        past = (*self.cluster.revoked, *self.cluster.withdrawn)
        if not found and any(name in (one.name, one.node) for one in past):
            raise UsageError(f"'{name}' is revoked already", "see `edgepp peers`")
        what = "more than one node or token" if found else "no node or token"
        raise UsageError(f"{what} is called '{name}'", "see `edgepp peers` for names and ids")

    def _change(self, change: Callable[[Cluster], Cluster]) -> None:
        self.cluster = change_cluster(self.cluster.id, change)
        self._admit()

    def _admit(self) -> None:
        self._gate.admit(self.keys | {token.key for token in self.cluster.tokens})
