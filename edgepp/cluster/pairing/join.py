"""Which cluster a machine joins, and how: with a code, with a token, or as the member that it is already."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from edgepp.cluster.discovery.announcement import Announcement
from edgepp.cluster.discovery.coordinator_addresses import MAX_ADDRESSES, coordinator_addresses, in_turns
from edgepp.cluster.discovery.mdns import Browser
from edgepp.cluster.identity import Cluster, Identity, load_cluster, save_cluster
from edgepp.cluster.pairing.client import join_by_code
from edgepp.cluster.pairing.codes import read_code
from edgepp.cluster.pairing.token_join import join_by_token
from edgepp.cluster.pairing.tokens import Token, parse_token, read_token
from edgepp.errors import EdgeppError, PairingError
from edgepp.wire.address import Address

FIND_S = 10.0
"""How long to search the network for a coordinator."""
_RENEW_S = 2.0
"""How long a member with a token waits for its coordinator to confirm the token."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairingOptions:
    """How a machine pairs with its cluster."""

    code: str | None = None
    """The invitation code that `edgepp invite` printed."""
    token: str | None = None
    """The token that `edgepp token` printed; None takes the token of the environment or token file, if there is one."""
    peers: tuple[Address, ...] = ()
    """Addresses of the coordinator; empty searches the network."""
    replace: bool = False
    """Whether to leave the present cluster for the one of the code or token."""


def pair_with_cluster(
    options: PairingOptions, identity: Identity, browser: Browser | None, given_up: threading.Event | None = None
) -> Cluster:
    """The cluster that this machine belongs to, after pairing with a code or token where ``options`` or files give one.

    ``browser`` finds coordinators on the network; None searches nothing. A search ends early when ``given_up`` is set.

    Raises:
        UsageError: the code or token is malformed.
        PairingError: this machine belongs to no cluster, or to another one without ``options.replace``, or the
            coordinator refuses.
        PeerLost: the coordinator does not answer.
    """
    peers, code = options.peers, options.code
    known = load_cluster()
    if known is not None and options.replace:
        _check_replaceable(known, identity)
    kept = None if options.replace or known is None else known.id
    if code is not None:
        cluster = join_by_code(code, _inviting_addresses(code, peers, browser, given_up), identity, known=kept)
        save_cluster(cluster)
        return cluster
    text = options.token or read_token()
    if text is not None:
        token = parse_token(text)
        if kept not in (None, token.cluster):
            raise PairingError(
                "the token is of another cluster than this machine's",
                "add --replace to move to the token's cluster, or run `edgepp leave` first",
            )
        if known is None or known.id != token.cluster:
            addresses = peers or _find(browser, lambda heard: heard.cluster == token.cluster, given_up)
            known = join_by_token(token, addresses[:MAX_ADDRESSES], identity)
            save_cluster(known)
        else:
            _renew(token, known, peers, identity)
    if known is None:
        raise PairingError(
            "this machine belongs to no cluster yet",
            "run `edgepp invite` where `edgepp serve` runs, and `edgepp join CODE` on this machine",
        )
    if known.coordinator.node == identity.node:
        raise PairingError(
            "this machine coordinates a cluster of its own",
            "run `edgepp serve` on this machine, or join another cluster with a code and --replace",
        )
    return known


def _renew(token: Token, known: Cluster, peers: tuple[Address, ...], identity: Identity) -> None:
    """Present the token again, in case the coordinator has lost this node, as one that was restored from a backup has.

    A failure does not matter: the node may be a member all the same, and learns when it connects.
    """
    try:
        join_by_token(token, coordinator_addresses(known, peers, ()), identity, _RENEW_S)
    except EdgeppError as error:
        log.info("the token was not confirmed; this machine may be a member all the same: %s", error)


def _check_replaceable(known: Cluster, identity: Identity) -> None:
    if known.coordinator.node == identity.node and known.members:
        raise PairingError(
            f"this machine coordinates a cluster of its own, which would end for {len(known.members)} other nodes",
            "run `edgepp leave` first",
        )


def _inviting_addresses(
    code: str, peers: tuple[Address, ...], browser: Browser | None, given_up: threading.Event | None
) -> tuple[Address, ...]:
    if peers:
        return peers
    number, _ = read_code(code)  # so that a malformed code is refused before the search
    found = _find(browser, lambda heard: number in heard.invitations, given_up)
    if not found:
        raise PairingError(
            f"no machine on this network has an open invitation {number}: it expired, was used, or cannot be heard",
            "run `edgepp invite` again, or give the coordinator's address: --peer HOST:PORT",
        )
    return found


def _find(
    browser: Browser | None, accept: Callable[[Announcement], bool], given_up: threading.Event | None
) -> tuple[Address, ...]:
    if browser is None:
        return ()
    return in_turns(*(heard.addresses for heard in browser.find(accept, FIND_S, given_up)))
