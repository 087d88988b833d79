"""Joining by a token: its holder proves the token's key, and asks that its own be admitted."""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from edgepp.cluster.identity import Cluster, Identity, PairedNode
from edgepp.cluster.pairing.tokens import Token
from edgepp.errors import PairingError, RemoteProtocolError
from edgepp.printable import one_line
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.message_codec import decode
from edgepp.wire.messages import MAX_PAYLOAD_BYTES, Adopt, Enrolled, Refused
from edgepp.wire.security import Pinned
from edgepp.wire.transport import Address


def join_by_token(token: Token, addresses: Sequence[Address], identity: Identity, wait_s: float = 10.0) -> Cluster:
    """Become a member of the token's cluster, whose coordinator is at one of ``addresses`` within ``wait_s``.

    Raises:
        PairingError: the token was revoked, or the coordinator refused.
        PeerLost: nobody answers there.
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
            "make a new one with `edgepp token` there",
        ) from error
    except RemoteProtocolError as error:
        raise PairingError(f"the coordinator cannot be understood: {error}") from error
    finally:
        context.term()
    if isinstance(answer, Refused):
        raise PairingError(
            f"the coordinator does not let this machine in by a token: {one_line(answer.reason)}",
            "run `edgepp invite` there, and here `edgepp join CODE`",
        )
    if not isinstance(answer, Enrolled) or answer.cluster != token.cluster:
        raise PairingError(
            f"the coordinator did not take the token: it answered {type(answer).__name__}",
            "make a new one with `edgepp token` there",
        )
    coordinator = PairedNode.of(answer.name, token.coordinator)
    return Cluster(token.cluster, coordinator, addresses=(str(link.address),))
