"""Joining a cluster with an invitation code: the client side of the pairing protocol."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from edgepp.cluster.identity import Cluster, Identity, PairedNode, is_cluster_id
from edgepp.cluster.pairing.codes import MAX_GUESSES, read_code
from edgepp.cluster.pairing.protocol import (
    ATTEMPT_ID_BYTES,
    EXCHANGE_S,
    REFUSAL_CAUSES,
    Channel,
    OtherVersionError,
    RefusalCause,
    Seal,
    Spake,
    connected,
    expect,
)
from edgepp.errors import PairingError, RemoteProtocolError, UsageError
from edgepp.wire.address import Address
from edgepp.wire.text_fields import is_key

_RETRY_S = 0.05


def join_by_code(
    code: str, addresses: Sequence[Address], identity: Identity, wait_s: float = 10.0, known: str | None = None
) -> Cluster:
    """Join the cluster that invited this node, over the first of the coordinator's cluster ``addresses`` that answers.

    A wrong code costs one guess, however many addresses are tried. With ``known``, the id of a cluster, the code of
    another cluster is left unused. Returns the cluster to save: its coordinator's key, and the address that worked.

    Raises:
        UsageError: ``code`` is not a code, or there is no address.
        PairingError: no server takes the code within ``wait_s`` seconds, or the code is wrong, void, expired, used, or
            of another cluster than ``known``.
    """
    number, code = read_code(code)
    if not addresses:
        raise UsageError("no coordinator is known that could take the code", "give its address: --peer HOST:PORT")
    client = _PairingClient(number, code, identity, known, time.monotonic() + wait_s)
    untried = list(dict.fromkeys(addresses))
    while untried and client.may_prove():
        broken_off: list[Address] = []
        client.failures = [failure for failure in client.failures if not isinstance(failure, _BrokenOffError)]
        with closing(connected(untried, client.end_s)) as connections:
            for address, connection in connections:
                cluster = client.attempt(address, connection)
                if cluster is not None:
                    return cluster
                if client.broken_off:
                    broken_off.append(address)
                if not client.may_prove():
                    break
        untried = broken_off if time.monotonic() + _RETRY_S < client.end_s and not client.was_judged else []
        if untried:
            time.sleep(_RETRY_S)  # the server may have dropped the connection because of many other clients
    if client.failures:
        raise max(client.failures, key=_rank)
    tried = ", ".join(str(address) for address in dict.fromkeys(addresses))
    raise PairingError(
        f"nobody takes invitation {number} at {tried}: it has expired or was used, or that machine cannot be reached",
        "run `edgepp invite` on the coordinator again, and check with `edgepp doctor` that this machine can reach it",
    )


class _PairingClient:
    """One attempt with a code, over one address after another."""

    def __init__(self, number: int, code: str, identity: Identity, known: str | None, end_s: float) -> None:
        self._number, self._code, self._identity, self._known = number, code, identity, known
        self._attempt_id = secrets.token_bytes(ATTEMPT_ID_BYTES)
        self._proofs = 0
        self._spake = Spake(
            "client", code
        )  # made before the connection, since the server drops silent connections first
        self.end_s = end_s
        self.broken_off = False
        """Whether the last server ended the exchange without an answer."""
        self.failures: list[PairingError] = []

    def may_prove(self) -> bool:
        """Whether another proof may be sent: each one lets a false server test one guess."""
        return self._proofs < MAX_GUESSES

    @property
    def was_judged(self) -> bool:
        """Whether a server has refused the attempt, and so knows of the invitation."""
        return any(isinstance(failure, _RefusedError) for failure in self.failures)

    def attempt(self, address: Address, connection: socket.socket) -> Cluster | None:
        """Pair over this connection; None where that failed, with the reason in ``failures``."""
        self.broken_off = False
        channel = Channel(connection, min(EXCHANGE_S, max(0.1, self.end_s - time.monotonic())))
        try:
            seal = self._agree(channel, address)
            self._proofs += 1
            return _prove(channel, seal, self._identity, address, self._number)
        except PairingError as error:
            self.failures.append(error)
        except OtherVersionError as error:
            self.failures.append(PairingError(f"{address}: {error}", "install the same version of edgepp on both"))
        except (RemoteProtocolError, OSError) as error:
            self.broken_off = True
            self.failures.append(_BrokenOffError(f"{address} broke off the pairing: {error}", "try again"))
        finally:
            self._spake = Spake("client", self._code)
        return None

    def _agree(self, channel: Channel, address: Address) -> Seal:
        channel.send("join", self._number, self._spake.element, self._attempt_id)
        element, cluster = expect(_answer(channel, self._number), "server", bytes, str, last="")
        if self._known is not None and cluster not in ("", self._known):
            raise PairingError(
                f"invitation {self._number} at {address} is of another cluster than this machine's",
                "add --replace to belong to that one instead, or run `edgepp leave` first; the code is still good",
            )
        return self._spake.seal(element, channel.transcript.digest())


def _prove(channel: Channel, seal: Seal, identity: Identity, address: Address, number: int) -> Cluster:
    channel.send("prove", seal.close("client", (identity.name, identity.keys.public)))
    (box,) = expect(_answer(channel, number), "admit", bytes)
    opened = seal.open("server", box)
    if opened is None:
        raise PairingError(
            f"the machine at {address} does not know the code that it asks for", "do not trust that machine"
        )
    cluster, name, key, port = expect(("", *opened), "", str, str, str, int)
    if not is_cluster_id(cluster) or not is_key(key) or not 0 < port < 65536:
        raise RemoteProtocolError("the server sent a malformed cluster")
    return Cluster(cluster, PairedNode.of(name, key)).reached(str(Address(address.host, port)))


def _answer(channel: Channel, number: int) -> tuple[Any, ...]:
    """The server's next message.

    Raises:
        PairingError: the server refuses.
        RemoteProtocolError: the server closed the connection.
    """
    answer = channel.receive()
    if answer is None:
        raise RemoteProtocolError("the server closed the connection")
    if answer[0] != "refuse":
        return answer
    cause, left = expect(answer, "refuse", str, int)
    invite_again = "run `edgepp invite` on the coordinator again"
    match cause:
        case "wrong" if left > 0:
            raise _RefusedError(
                cause, f"the code is wrong ({left} of {MAX_GUESSES} guesses left)", "check the code and type it again"
            )
        case "wrong":
            raise _RefusedError(cause, f"the code is wrong, and invitation {number} is now void", invite_again)
        case "void":
            raise _RefusedError(cause, f"invitation {number} is void after too many wrong guesses", invite_again)
        case "expired":
            raise _RefusedError(cause, f"invitation {number} has expired", invite_again)
        case "failed":
            raise _RefusedError(
                cause, "the coordinator could not let this machine in: its own messages say why", invite_again
            )
        case "used":
            raise _RefusedError(cause, f"invitation {number} was used already", invite_again)
        case _:
            raise _RefusedError(
                "unknown", f"invitation {number} is not open: it expired, was used or never made", invite_again
            )


class _RefusedError(PairingError):
    """The server refuses the attempt, for this cause."""

    def __init__(self, cause: RefusalCause, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.cause = cause


class _BrokenOffError(PairingError):
    """The other side ended the exchange without an answer."""


def _rank(error: PairingError) -> int:
    """How much an error tells the user: a refusal by a server that knows the invitation tells most."""
    if isinstance(error, _RefusedError):
        return len(REFUSAL_CAUSES) - REFUSAL_CAUSES.index(error.cause)
    return -1 if isinstance(error, _BrokenOffError) else 0
