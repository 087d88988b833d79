"""Joining a cluster with an invitation code: the client side of the pairing protocol."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from edgepp.cluster.identity import Cluster, Identity, PairedNode, is_cluster_id
from edgepp.cluster.pairing.candidates import SILENT_S, Candidate, Candidates
from edgepp.cluster.pairing.codes import MAX_GUESSES, read_code
from edgepp.cluster.pairing.protocol import (
    ATTEMPT_ID_BYTES,
    REFUSAL_CAUSES,
    Channel,
    OtherVersionError,
    RefusalCause,
    Spake,
    expect,
)
from edgepp.errors import PairingError, RemoteProtocolError, UsageError
from edgepp.wire.address import Address
from edgepp.wire.text_fields import is_key

_PROOF_TURN_S = 2.0
"""How long a proof may be unanswered before another machine gets one; the answer to the first one still counts."""
_LOOK_S = 0.1
"""The time between two looks at proofs that are unanswered."""
_MAX_NAMED = 8
"""Addresses that an error names."""


def join_by_code(
    code: str, addresses: Sequence[Address], identity: Identity, wait_s: float = 10.0, known: str | None = None
) -> Cluster:
    """Join the cluster that invited this node, over the first of its coordinator's ``addresses`` that lets it in.

    All addresses are asked at once, since any machine on the network can claim the invitation and then say nothing.
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
    with closing(_PairingClient(number, code, identity, known, addresses)) as client:
        cluster = client.pair(time.monotonic() + wait_s)
        failures = client.failures
    if cluster is not None:
        return cluster
    if failures:
        raise max(failures, key=_rank)
    tried = ", ".join(str(address) for address in dict.fromkeys(addresses[:_MAX_NAMED]))
    more = f" and {len(addresses) - _MAX_NAMED} further addresses" if len(addresses) > _MAX_NAMED else ""
    raise PairingError(
        f"nobody takes invitation {number} at {tried}{more}: it has expired or was used, or that machine cannot be "
        "reached",
        "run `edgepp invite` on the coordinator again, and check with `edgepp doctor` that this machine can reach it",
    )


class _PairingClient:
    """One attempt with a code, over all addresses at once; proofs are sent one after the other."""

    def __init__(
        self, number: int, code: str, identity: Identity, known: str | None, addresses: Sequence[Address]
    ) -> None:
        self._number, self._code, self._identity, self._known = number, code, identity, known
        self._attempt_id = secrets.token_bytes(ATTEMPT_ID_BYTES)
        self._num_proofs = 0
        self._candidates = Candidates(addresses)
        self._failures: dict[Candidate, PairingError] = {}
        self._judged_s: float | None = None
        self._cluster: Cluster | None = None

    @property
    def failures(self) -> list[PairingError]:
        """Why each candidate failed, of those whose connection was made."""
        return list(self._failures.values())

    def close(self) -> None:
        """Close all connections."""
        self._candidates.close()

    def pair(self, end_s: float) -> Cluster | None:
        """Pair with one of the candidates until ``end_s`` (monotonic); None without success."""
        while self._cluster is None and (now_s := time.monotonic()) < end_s and not self._is_over(now_s):
            self._candidates.begin()
            for candidate in self._candidates.ready(min(_LOOK_S, end_s - now_s)):
                self._go_on(candidate, end_s)
            self._prove_next()
        return self._cluster

    def _is_over(self, now_s: float) -> bool:
        """Whether no candidate is left that might let this node in, or answer soon."""
        if self._candidates.done:
            return True
        if self._candidates.in_state("proved"):
            return False
        if self._num_proofs >= MAX_GUESSES:
            return True
        return self._judged_s is not None and now_s - self._judged_s > SILENT_S

    def _go_on(self, candidate: Candidate, end_s: float) -> None:
        """Greet a candidate, or take its answer; a failure is kept in ``failures``."""
        try:
            if candidate.state == "dialled":
                self._greet(candidate, end_s)
            elif (channel := candidate.channel) is not None and channel.can_receive():
                if candidate.state == "greeted":
                    self._take_element(candidate, channel)
                else:
                    self._cluster = self._cluster or self._admitted(candidate, channel)
        except PairingError as error:
            self._fail(candidate, error)
        except OtherVersionError as error:
            self._fail(
                candidate, PairingError(f"{candidate.address}: {error}", "install the same version of edgepp on both")
            )
        except (RemoteProtocolError, OSError) as error:
            self._break_off(candidate, error)

    def _greet(self, candidate: Candidate, end_s: float) -> None:
        connection = candidate.connection
        if connection is None or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
            self._candidates.drop(candidate)
            return
        channel = Channel(connection, end_s - time.monotonic())
        spake = Spake("client", self._code)
        candidate.channel, candidate.spake = channel, spake
        channel.send("join", self._number, spake.element, self._attempt_id)
        candidate.enter("greeted")
        self._candidates.listen(candidate)

    def _take_element(self, candidate: Candidate, channel: Channel) -> None:
        element, cluster = expect(_answer(channel, self._number), "server", bytes, str, last="")
        if self._known is not None and cluster not in ("", self._known):
            raise PairingError(
                f"invitation {self._number} at {candidate.address} is of another cluster than this machine's",
                "add --replace to belong to that one instead, or run `edgepp leave` first; the code is still good",
            )
        candidate.element = element
        candidate.enter("answered")
        self._candidates.ignore(candidate)

    def _prove_next(self) -> None:
        """Send the next proof, once the one before is answered, or has been unanswered for ``_PROOF_TURN_S``."""
        unanswered = self._candidates.in_state("proved")
        if self._num_proofs >= MAX_GUESSES or any(time.monotonic() - one.since_s < _PROOF_TURN_S for one in unanswered):
            return
        for candidate in self._candidates.in_state("answered")[:1]:
            channel, spake = candidate.channel, candidate.spake
            if channel is None or spake is None:
                continue
            try:
                candidate.seal = spake.seal(candidate.element, channel.transcript.digest())
                self._num_proofs += 1
                fields = (self._identity.name, self._identity.keys.public)
                channel.send("prove", candidate.seal.close("client", fields))
            except (RemoteProtocolError, OSError) as error:
                self._break_off(candidate, error)
                continue
            candidate.enter("proved")
            self._candidates.listen(candidate)

    def _admitted(self, candidate: Candidate, channel: Channel) -> Cluster:
        (box,) = expect(_answer(channel, self._number), "admit", bytes)
        opened = candidate.seal.open("server", box) if candidate.seal is not None else None
        if opened is None:
            raise PairingError(
                f"the machine at {candidate.address} does not know the code that it asks for",
                "do not trust that machine; name the coordinator's own address: --peer HOST:PORT",
            )
        cluster, name, key, port = expect(("", *opened), "", str, str, str, int)
        if not is_cluster_id(cluster) or not is_key(key) or not 0 < port < 65536:
            raise RemoteProtocolError("the server sent a malformed cluster")
        return Cluster(cluster, PairedNode.of(name, key)).reached(str(Address(candidate.address.host, port)))

    def _fail(self, candidate: Candidate, error: PairingError) -> None:
        self._failures[candidate] = error
        self._candidates.drop(candidate)
        if isinstance(error, _RefusedError):
            self._judged_s = self._judged_s or time.monotonic()

    def _break_off(self, candidate: Candidate, error: Exception) -> None:
        """Try again soon: the server may have dropped the connection because of many other clients."""
        self._failures[candidate] = _BrokenOffError(f"{candidate.address} broke off the pairing: {error}", "try again")
        self._candidates.retry(candidate, broken=True)


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
