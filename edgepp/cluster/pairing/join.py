"""How a machine comes to a cluster: by a code, by a token, or as a member of old."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from edgepp.cluster.discovery.announcement import Announcement
from edgepp.cluster.discovery.coordinator_addresses import coordinator_addresses
from edgepp.cluster.discovery.mdns import Browser
from edgepp.cluster.identity import Cluster, Identity, load_cluster, save_cluster
from edgepp.cluster.pairing.client import join_by_code
from edgepp.cluster.pairing.codes import read_code
from edgepp.cluster.pairing.token_join import join_by_token
from edgepp.cluster.pairing.tokens import Token, parse_token, read_token
from edgepp.errors import EdgeppError, PairingError
from edgepp.wire.transport import Address

FIND_S = 10.0
"""How long the network is listened to for a coordinator."""
_RENEW_S = 2.0
"""How long the coordinator of old has to answer a machine that comes with its token again."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairingOptions:
    """How a machine comes to its cluster."""

    code: str | None = None
    """What `edgepp invite` printed."""
    token: str | None = None
    """What `edgepp token` printed; unless given, the token of the environment or the token file, if there is one."""
    peers: tuple[Address, ...] = ()
    """Where the coordinator may be; unless given, the coordinator is looked for."""
    replace: bool = False
    """Whether to belong to the cluster of the code or token instead of the present one."""


def paired(
    options: PairingOptions, identity: Identity, browser: Browser | None, given_up: threading.Event | None = None
) -> Cluster:
    """The cluster to join; pairs with it first, by a code or token, where that was asked for.

    Looking for the coordinator ends early when ``given_up`` is set.

    Raises:
        UsageError: the code is none.
        PairingError: this machine is in no cluster, in another one that ``options`` do not give up, or not let in.
        PeerLost: nobody answers.
    """
    peers, code = options.peers, options.code
    known = load_cluster()
    if known is not None and options.replace:
        _check_replaceable(known, identity)
    kept = None if options.replace or known is None else known.id
    if code is not None:
        cluster = join_by_code(code, _inviting(code, peers, browser, given_up), identity, known=kept)
        save_cluster(cluster)
        return cluster
    text = options.token or read_token()
    if text is not None:
        token = parse_token(text)
        if kept not in (None, token.cluster):
            raise PairingError(
                "the token is of another cluster than the one that this machine belongs to",
                "add --replace to belong to that one instead, or run `edgepp leave` first",
            )
        if known is None or known.id != token.cluster:
            addresses = peers or _seen(browser, lambda record: record.cluster == token.cluster, given_up)
            known = join_by_token(token, addresses, identity)
            save_cluster(known)
        else:
            _renew(token, known, peers, identity)
    if known is None:
        raise PairingError(
            "this machine belongs to no cluster yet",
            "run `edgepp invite` where `edgepp serve` runs, and here `edgepp join CODE`",
        )
    if known.coordinator.node == identity.node:
        raise PairingError(
            "this machine coordinates a cluster of its own",
            "run `edgepp serve` here; or join another one with a code and --replace",
        )
    return known


def _renew(token: Token, known: Cluster, peers: tuple[Address, ...], identity: Identity) -> None:
    """Be adopted by the cluster of old again, if its book lost this machine, as one from a backup has.

    Where the token is withdrawn or nobody answers, what the node itself hears of the coordinator counts.
    """
    try:
        join_by_token(token, coordinator_addresses(known, peers, ()), identity, _RENEW_S)
    except EdgeppError as error:
        _LOG.info("the token lets this machine in no more, which may be a member all the same: %s", error)


def _check_replaceable(known: Cluster, identity: Identity) -> None:
    if known.coordinator.node == identity.node and known.members:
        raise PairingError(
            f"this machine coordinates a cluster of its own, which would end for {len(known.members)} others",
            "run `edgepp leave` first",
        )


def _inviting(
    code: str, peers: tuple[Address, ...], browser: Browser | None, given_up: threading.Event | None
) -> tuple[Address, ...]:
    if peers:
        return peers
    number, _ = read_code(code)  # a slip that can be seen is said before anything is looked for
    found = _seen(browser, lambda record: number in record.invitations, given_up)
    if not found:
        raise PairingError(
            f"no machine on this network has an open invitation {number}: it expired, was used, or cannot be heard",
            "ask for a new one with `edgepp invite`, or name the machine with --peer HOST:PORT",
        )
    return found


def _seen(
    browser: Browser | None, accept: Callable[[Announcement], bool], given_up: threading.Event | None
) -> tuple[Address, ...]:
    if browser is None:
        return ()
    return tuple(address for record in browser.find(accept, FIND_S, given_up) for address in record.addresses)
