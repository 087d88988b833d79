"""Joining a cluster by an invitation code: the new machine's side of what the coordinator's ``desk`` offers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from edgepp.cluster.codes import GUESSES, read_code
from edgepp.cluster.exchange import (
    CAUSES,
    EXCHANGE_S,
    Cause,
    Channel,
    OtherVersionError,
    Seal,
    Spake,
    connected,
    expect,
)
from edgepp.cluster.identity import Cluster, Identity, Member, is_cluster_id
from edgepp.errors import PairingError, RemoteProtocolError, UsageError
from edgepp.wire.transport import Address
from edgepp.wire.values import is_key


def redeem(code: str, addresses: Sequence[Address], identity: Identity, wait_s: float = 10.0) -> Cluster:
    """Join the cluster that invited this node, at whichever of its coordinator's cluster addresses answers.

    Returns what to save: the cluster with its coordinator's key, and the address that worked.

    Raises:
        UsageError: ``code`` is no code, or there is no address.
        PairingError: nobody takes it, or it is wrong, void, expired or used.
    """
    number, code = read_code(code)
    if not addresses:
        raise UsageError("no coordinator is known to take the code to", "give its address: --peer HOST:PORT")
    end_s = time.monotonic() + wait_s
    failures: list[PairingError] = []
    proofs = 0
    with closing(connected(addresses, end_s)) as connections:
        for address, connection in connections:
            channel = Channel(connection, min(EXCHANGE_S, max(0.1, end_s - time.monotonic())))
            try:
                seal = _agree(channel, code, number)
                proofs += 1
                return _prove(channel, seal, identity, address, number)
            except PairingError as error:
                failures.append(error)
            except OtherVersionError as error:
                failures.append(PairingError(f"{address}: {error}", "install the same version of edgepp on both"))
            except (RemoteProtocolError, OSError) as error:
                failures.append(PairingError(f"{address} broke off the pairing: {error}"))
            if proofs >= GUESSES:  # each may have been a false desk's guess
                break
    if failures:
        raise max(failures, key=_weight)
    tried = ", ".join(str(address) for address in dict.fromkeys(addresses))
    raise PairingError(
        f"nobody takes invitation {number} at {tried}: it has expired or was used, or the machine is not there",
        "run edgepp invite on the coordinator again, and look whether this machine can reach it",
    )


def _agree(channel: Channel, code: str, number: int) -> Seal:
    spake = Spake("joiner", code)
    channel.send("join", number, spake.element)
    (element,) = expect(_answer(channel, number), "desk", bytes)
    return spake.seal(element, channel.transcript.digest())


def _prove(channel: Channel, seal: Seal, identity: Identity, address: Address, number: int) -> Cluster:
    channel.send("prove", seal.close("joiner", (identity.name, identity.keys.public)))
    (box,) = expect(_answer(channel, number), "admit", bytes)
    opened = seal.open("desk", box)
    if opened is None:
        raise PairingError(f"{address} does not know the code that it asks for", "do not trust that machine")
    cluster, name, key, port = expect(("", *opened), "", str, str, str, int)
    if not is_cluster_id(cluster) or not is_key(key) or not 0 < port < 65536:
        raise RemoteProtocolError("what it says of its cluster makes no sense")
    return Cluster(cluster, Member.of(name, key)).reached(str(Address(address.host, port)))


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


def _weight(error: PairingError) -> int:
    """How much an error says; of several addresses, the one that knew the invitation says most."""
    return len(CAUSES) - CAUSES.index(error.cause) if isinstance(error, _RefusedError) else 0
