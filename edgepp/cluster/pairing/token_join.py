"""Joining with a token: this machine proves the token's key and asks the coordinator to admit its own key."""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from edgepp.cluster.identity import Cluster, Identity, PairedNode
from edgepp.cluster.pairing.tokens import Token
from edgepp.errors import PairingError, RemoteProtocolError
from edgepp.printable import one_line
from edgepp.wire.address import Address
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.message_codec import decode
from edgepp.wire.messages import MAX_PAYLOAD_BYTES
from edgepp.wire.messages.control import Refused
from edgepp.wire.messages.nodes import Adopt, Enrolled
from edgepp.wire.security import Pinned


def join_by_token(token: Token, addresses: Sequence[Address], identity: Identity, wait_s: float = 10.0) -> Cluster:
    """Join the token's cluster, over the first of the coordinator's ``addresses`` that answers.

    Returns the cluster to save, within ``wait_s`` seconds.

    Raises:
        PairingError: the token was revoked, or the coordinator refuses.
        PeerLost: no address answers.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        hello = Adopt(identity.name, identity.keys.public)
        pinned = Pinned(token.keys, token.coordinator)
        link, frames = connect_first(context, addresses, hello, wait_s, MAX_PAYLOAD_BYTES, pinned)
        link.close()
        answer = decode(frames[0])
    except PairingError as error:
        raise PairingError(
            "the coordinator does not admit this token: it was revoked, or is of another cluster",
            "make a new token with `edgepp token` on the coordinator",
        ) from error
    except RemoteProtocolError as error:
        raise PairingError(f"the coordinator cannot be understood: {error}") from error
    finally:
        context.term()
    if isinstance(answer, Refused):
        raise PairingError(
            f"the coordinator does not let this machine in by a token: {one_line(answer.reason)}",
            "run `edgepp invite` on the coordinator, and `edgepp join CODE` on this machine",
        )
    if not isinstance(answer, Enrolled) or answer.cluster != token.cluster:
        raise PairingError(
            f"the coordinator did not accept the token: its answer is {type(answer).__name__}",
            "make a new token with `edgepp token` on the coordinator",
        )
    coordinator = PairedNode.of(answer.name, token.coordinator)
    return Cluster(token.cluster, coordinator, addresses=(str(link.address),))
