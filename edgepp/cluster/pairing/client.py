"""Joining a cluster by an invitation code: the new machine's side of what the coordinator's ``desk`` offers."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from edgepp.cluster.identity import Cluster, Identity, PairedNode, is_cluster_id
from edgepp.cluster.pairing.codes import GUESSES, read_code
from edgepp.cluster.pairing.protocol import (
    CAUSES,
    EXCHANGE_S,
    TRY_BYTES,
    Cause,
    Channel,
    OtherVersionError,
    Seal,
    Spake,
    connected,
    expect,
)
from edgepp.errors import PairingError, RemoteProtocolError, UsageError
from edgepp.wire.text_fields import is_key
from edgepp.wire.transport import Address

_AGAIN_S = 0.05


def join_by_code(
    code: str, addresses: Sequence[Address], identity: Identity, wait_s: float = 10.0, known: str | None = None
) -> Cluster:
    """Join the cluster that invited this node, at whichever of its coordinator's cluster addresses answers.

    It is one guess at most, by however many addresses the coordinator is tried. With ``known``, the id of a cluster,
    the code of any other one is left unused. Returns what to save: the cluster with its coordinator's key, and the
    address that worked.

    Raises:
        UsageError: ``code`` is no code, or there is no address.
        PairingError: nobody takes it, it is wrong, void, expired or used, or of another cluster than ``known``.
    """
    number, code = read_code(code)
    if not addresses:
        raise UsageError("no coordinator is known to take the code to", "give its address: --peer HOST:PORT")
    joiner = _Joiner(number, code, identity, known, time.monotonic() + wait_s)
    left = list(dict.fromkeys(addresses))
    while left and joiner.may_prove():
        again: list[Address] = []
        joiner.failures = [failure for failure in joiner.failures if not isinstance(failure, _BrokenOffError)]
        with closing(connected(left, joiner.end_s)) as connections:
            for address, connection in connections:
                cluster = joiner.attempt(address, connection)
                if cluster is not None:
                    return cluster
                if joiner.broken_off:
                    again.append(address)
                if not joiner.may_prove():
                    break
        left = again if time.monotonic() + _AGAIN_S < joiner.end_s and not joiner.was_judged else []
        if left:
            time.sleep(_AGAIN_S)  # so many strangers wait at the desk that it had no place
    if joiner.failures:
        raise max(joiner.failures, key=_weight)
    tried = ", ".join(str(address) for address in dict.fromkeys(addresses))
    raise PairingError(
        f"nobody takes invitation {number} at {tried}: it has expired or was used, or the machine is not there",
        "run edgepp invite on the coordinator again, and look whether this machine can reach it",
    )


class _Joiner:
    """One try with a code, at one address after another."""

    def __init__(self, number: int, code: str, identity: Identity, known: str | None, end_s: float) -> None:
        self._number, self._code, self._identity, self._known = number, code, identity, known
        self._try = secrets.token_bytes(TRY_BYTES)
        self._proofs = 0
        self._spake = Spake("joiner", code)  # made before a connection is: a desk waits for nobody who is silent
        self.end_s = end_s
        self.broken_off = False
        """Whether the last address ended the exchange without a word."""
        self.failures: list[PairingError] = []

    def may_prove(self) -> bool:
        """Whether another box may be sent: each may have been a false desk's guess."""
        return self._proofs < GUESSES

    @property
    def was_judged(self) -> bool:
        """Whether a desk knew the invitation."""
        return any(isinstance(failure, _RefusedError) for failure in self.failures)

    def attempt(self, address: Address, connection: socket.socket) -> Cluster | None:
        """Become a member over this connection; None where that failed."""
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
            self.failures.append(_BrokenOffError(f"{address} broke off the pairing: {error}", "try it again"))
        finally:
            self._spake = Spake("joiner", self._code)
        return None

    def _agree(self, channel: Channel, address: Address) -> Seal:
        channel.send("join", self._number, self._spake.element, self._try)
        element, cluster = expect(_answer(channel, self._number), "desk", bytes, str, last="")
        if self._known is not None and cluster not in ("", self._known):
            raise PairingError(
                f"invitation {self._number} at {address} is of another cluster than this machine's",
                "add --replace to belong to that one instead, or run `edgepp leave` first; the code is still good",
            )
        return self._spake.seal(element, channel.transcript.digest())


def _prove(channel: Channel, seal: Seal, identity: Identity, address: Address, number: int) -> Cluster:
    channel.send("prove", seal.close("joiner", (identity.name, identity.keys.public)))
    (box,) = expect(_answer(channel, number), "admit", bytes)
    opened = seal.open("desk", box)
    if opened is None:
        raise PairingError(f"{address} does not know the code that it asks for", "do not trust that machine")
    cluster, name, key, port = expect(("", *opened), "", str, str, str, int)
    if not is_cluster_id(cluster) or not is_key(key) or not 0 < port < 65536:
        raise RemoteProtocolError("what it says of its cluster makes no sense")
    return Cluster(cluster, PairedNode.of(name, key)).reached(str(Address(address.host, port)))


def _answer(channel: Channel, number: int) -> tuple[Any, ...]:
    """The desk's next message, unless it refuses."""
    answer = channel.receive()
    if answer is None:
        raise RemoteProtocolError("it closed the connection")
    if answer[0] != "refuse":
        return answer
    cause, left = expect(answer, "refuse", str, int)
    again = "run edgepp invite on the coordinator again"
    match cause:
        case "wrong" if left > 0:
            raise _RefusedError(cause, f"the code is wrong ({left} of {GUESSES} guesses left)", "read it again")
        case "wrong":
            raise _RefusedError(cause, f"the code is wrong, and invitation {number} is now void", again)
        case "void":
            raise _RefusedError(cause, f"invitation {number} is void after too many wrong guesses", again)
        case "expired":
            raise _RefusedError(cause, f"invitation {number} has expired", again)
        case "failed":
            raise _RefusedError(cause, "the coordinator could not let this machine in: its own messages say why", again)
        case "used":
            raise _RefusedError(cause, f"invitation {number} was used already", again)
        case _:
            raise _RefusedError(
                "unknown", f"invitation {number} is not open: it expired, was used or never made", again
            )


class _RefusedError(PairingError):
    """The desk's refusal."""

    def __init__(self, cause: Cause, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.cause = cause


class _BrokenOffError(PairingError):
    """A desk, or what seemed one, ended the exchange without a word."""


def _weight(error: PairingError) -> int:
    """How much an error says; of several addresses, the one that knew the invitation says most."""
    if isinstance(error, _RefusedError):
        return len(CAUSES) - CAUSES.index(error.cause)
    return -1 if isinstance(error, _BrokenOffError) else 0
