"""Keys that a cluster admits: paired nodes, tokens and revoked keys, on disk and in the gate of the socket."""

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
from edgepp.coordinator.node_names import called
from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.events import NodePaired
from edgepp.wire.address import Address
from edgepp.wire.messages.nodes import Adopt
from edgepp.wire.security import Gate
from edgepp.wire.text_fields import is_key

MAX_NODES_PER_TOKEN = 128
"""Nodes that one token lets in, revoked ones included: a bound on the damage of a stolen token."""


@dataclass(frozen=True)
class Adoption:
    """The outcome of an ``Adopt`` message."""

    paired: NodePaired | None = None
    """The event to report; None where the node was paired already, or is refused."""
    refusal: str = ""
    """Why the node is refused; empty where it is paired."""


class TrustStore:
    """The paired nodes, tokens and revoked keys of one cluster. Safe from any thread.

    A change takes effect once it is on disk; a change that cannot be written does not take effect.
    """

    def __init__(self, identity: Identity, cluster: Cluster, gate: Gate) -> None:
        """Take over ``cluster`` as it was read from disk, and admit its keys.

        Raises:
            EdgeppError: the cluster cannot be written.
        """
        self._identity = identity
        self._gate = gate
        self._lock = threading.Lock()
        self.cluster = cluster
        save_cluster(cluster)
        self._admit()

    def remember_address(self, address: Address) -> None:
        """Save the address at which this machine's own commands find the coordinator."""
        remember_address(self.cluster.id, address)

    @property
    def keys(self) -> set[str]:
        """The keys of this node and of all paired nodes."""
        return {self._identity.keys.public, *(member.key for member in self.cluster.members)}

    @property
    def nodes(self) -> set[str]:
        """The ids of all paired nodes."""
        return {member.node for member in self.cluster.members}

    def away(self, present: Collection[str]) -> list[str]:
        """The names of the paired nodes whose id is not in ``present``."""
        return [member.name for member in self.cluster.members if member.node not in present]

    def node_of(self, key: str) -> str:
        """The id of the node with this key.

        Raises:
            UsageError: the key is not, or no longer, a paired node's.
        """
        if key == self._identity.keys.public:
            return self._identity.node
        for member in self.cluster.members:
            if member.key == key:
                return member.node
        raise UsageError("this machine's key is not, or no longer, admitted", "ask for a new invitation")

    def check_room(self) -> None:
        """Check that one more node can be paired.

        Raises:
            UsageError: ``MAX_MEMBERS`` nodes are paired.
        """
        if len(self.cluster.members) >= MAX_MEMBERS:
            raise UsageError(
                f"{MAX_MEMBERS} nodes are paired with this cluster already",
                "revoke some that are away: `edgepp peers` lists them",
            )

    def pair(self, member: PairedNode) -> None:
        """Admit a node that proved an invitation code, also one whose key was revoked.

        Raises:
            UsageError: ``MAX_MEMBERS`` nodes are paired.
            EdgeppError: the change cannot be written.
        """
        with self._lock:
            others = tuple(other for other in self.cluster.members if other.node != member.node)
            if len(others) == len(self.cluster.members):
                self.check_room()
            revoked = tuple(one for one in self.cluster.revoked if one.node != member.node)
            self._change(lambda cluster: replace(cluster, members=(*others, member), revoked=revoked))

    def adopt(self, token_key: str, host: str, message: Adopt) -> Adoption:
        """Pair the node at ``host`` that proved ``token_key``, unless the node's own key was revoked.

        Raises:
            UsageError: ``token_key`` is not a token's.
            RemoteProtocolError: the node's own key is malformed.
            EdgeppError: the change cannot be written.
        """
        if not is_key(message.key):
            raise RemoteProtocolError("the key of the node to adopt is malformed")
        with self._lock:
            cluster = self.cluster
            token = next((token for token in cluster.tokens if token.key == token_key), None)
            if token is None:
                raise UsageError(
                    "this message needs a connection with a token's key", "run `edgepp join` with a valid token"
                )
            if any(message.key == one.key for one in (*cluster.members, cluster.coordinator)):
                return Adoption()
            if refusal := self._refusal(token, message.key):
                return Adoption(refusal=refusal)
            member = PairedNode.of(message.name, message.key, token.node)
            self._change(lambda cluster: replace(cluster, members=(*cluster.members, member)))
        return Adoption(paired=NodePaired(member.name, host, token.name))

    def _refusal(self, token: PairedNode, key: str) -> str:
        cluster = self.cluster
        if any(key == one.key for one in cluster.revoked):
            return f"{self._identity.name} revoked this machine's key; only a code of `edgepp invite` lets it in again"
        if len(cluster.revoked) >= MAX_MEMBERS:  # older revoked keys may have been dropped
            return f"{MAX_MEMBERS} keys are revoked, so only a code of `edgepp invite` lets machines in"
        if sum(one.token == token.node for one in (*cluster.members, *cluster.revoked)) >= MAX_NODES_PER_TOKEN:
            return f"{token.name} has let in {MAX_NODES_PER_TOKEN} machines, the most that one token can"
        if len(cluster.members) >= MAX_MEMBERS:
            return f"{MAX_MEMBERS} nodes are paired with this cluster already"
        return ""

    def token(self) -> dict[str, Any]:
        """Make a token; returns its ``name`` and its text ``token``, which is not kept.

        Raises:
            UsageError: there are ``MAX_TOKENS`` tokens.
            EdgeppError: the change cannot be written.
        """
        with self._lock:
            tokens = self.cluster.tokens
            if len(tokens) >= MAX_TOKENS:
                raise UsageError(
                    f"there are {MAX_TOKENS} tokens already", "revoke one, such as `edgepp revoke token-1`"
                )
            text, token = make_token(self.cluster)
            self._change(lambda cluster: replace(cluster, tokens=(*tokens, token)))
        return {"token": text, "name": token.name}

    def revoke(self, name: str, aliases: Mapping[str, str] | None = None) -> PairedNode:
        """Revoke a node or token and return it.

        ``name`` is a name, an id, or the first four or more digits of an id; ``aliases`` are the nodes' present names
        by node id.

        Raises:
            UsageError: no node or token is called ``name``, or more than one.
            EdgeppError: the change cannot be written.
        """
        with self._lock:
            revoked = self._find(name, aliases or {})

            def without(ones: tuple[PairedNode, ...]) -> tuple[PairedNode, ...]:
                return tuple(one for one in ones if one != revoked)

            def change(cluster: Cluster) -> Cluster:
                if revoked in cluster.tokens:
                    withdrawn = (*cluster.withdrawn, revoked)[-MAX_MEMBERS:]
                    return replace(cluster, tokens=without(cluster.tokens), withdrawn=withdrawn)
                others = (one for one in cluster.revoked if one.node != revoked.node)
                kept = (*others, revoked)[-MAX_MEMBERS:]
                return replace(cluster, members=without(cluster.members), revoked=kept)

            self._change(change)
        return revoked

    def forget(self, node: str) -> None:
        """Remove a node that left by itself: a code or a token lets it in again."""
        with self._lock:
            members = tuple(one for one in self.cluster.members if one.node != node)
            self._change(lambda cluster: replace(cluster, members=members))

    def token_of(self, member: PairedNode) -> str:
        """The name of the token that let a node in, while the token is valid; else empty."""
        return next((token.name for token in self.cluster.tokens if token.node == member.token), "")

    def peers(self, states: Mapping[str, str]) -> dict[str, Any]:
        """Paired nodes, valid tokens, revoked nodes and withdrawn tokens, as `edgepp peers` shows them.

        ``states`` are the states of the present nodes by node id.
        """
        cluster = self.cluster
        names = {token.node: token.name for token in (*cluster.tokens, *cluster.withdrawn)}

        def describe_node(one: PairedNode) -> dict[str, Any]:
            return {"node": one.node, "name": one.name, "key": one.key, "came_by": names.get(one.token, "")}

        def describe_token(token: PairedNode) -> dict[str, Any]:
            return {
                "node": token.node,
                "name": token.name,
                "nodes": sum(one.token == token.node for one in cluster.members),
            }

        return {
            "cluster": cluster.id,
            "peers": [{**describe_node(one), "state": states.get(one.node, "away")} for one in cluster.members],
            "tokens": [describe_token(token) for token in cluster.tokens],
            "revoked": [describe_node(one) for one in cluster.revoked],
            "withdrawn": [describe_token(token) for token in cluster.withdrawn],
        }

    def _find(self, name: str, aliases: Mapping[str, str]) -> PairedNode:
        """The node or token called ``name``, or as ``aliases`` have it by id."""
        paired = (*self.cluster.members, *self.cluster.tokens)
        found = called(name, paired, lambda one: (one.name, aliases.get(one.node)))
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
