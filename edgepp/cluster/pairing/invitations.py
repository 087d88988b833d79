"""The open invitations of a coordinator, and the count of wrong guesses for each. No socket and no thread."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from edgepp.cluster.identity import PairedNode
from edgepp.cluster.pairing.codes import MAX_GUESSES, make_code
from edgepp.cluster.pairing.protocol import RefusalCause, Seal, expect
from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.text_fields import is_key

INVITATION_S = 600.0
"""How long an invitation stays open."""
MAX_OPEN_INVITATIONS = 8
_NUMBERS = range(1, 100)


@dataclass
class PairingInvitation:
    """One open invitation."""

    number: int
    code: str = field(repr=False)
    expires_s: float
    num_guesses: int = 0
    """Wrong guesses so far."""
    failed_attempts: set[bytes] = field(default_factory=set)
    """Ids of the attempts that were judged wrong."""
    guessing_hosts: dict[str, None] = field(default_factory=dict)
    """Hosts of the wrong guesses, in order."""


@dataclass(frozen=True)
class Refusal:
    """Why an attempt is refused, as the ``refuse`` message tells the client."""

    cause: RefusalCause
    guesses_left: int = 0


class Invitations:
    """The invitations, open and closed. One lock of the owner guards every call."""

    def __init__(self, report: Callable[[str], None], clock: Callable[[], float]) -> None:
        """``report`` takes a line for the person who invited; ``clock`` gives seconds."""
        self._report = report
        self._clock = clock
        self._open: dict[int, PairingInvitation] = {}
        self._closed: dict[int, RefusalCause] = {}
        self._log_sampler = LogSampler()

    def __bool__(self) -> bool:
        return bool(self._open)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the open invitations, in order."""
        return tuple(sorted(self._open))

    def check_room(self) -> None:
        """Check that one more invitation can be opened.

        Raises:
            UsageError: ``MAX_OPEN_INVITATIONS`` are open.
        """
        if len(self._open) >= MAX_OPEN_INVITATIONS:
            raise UsageError(
                f"{MAX_OPEN_INVITATIONS} invitations are open already", "wait until one is used or expires"
            )

    def open(self) -> str:
        """Open an invitation for ``INVITATION_S`` seconds and one node; returns its code."""
        free = [number for number in _NUMBERS if number not in self._open]
        number = secrets.choice([number for number in free if number not in self._closed] or free)
        self._closed.pop(number, None)
        code = make_code(number)
        self._open[number] = PairingInvitation(number, code, self._clock() + INVITATION_S)
        return code

    def clear(self) -> None:
        """Close all invitations."""
        self._open.clear()

    def expire(self) -> None:
        """Close the invitations whose time is over."""
        for invitation in list(self._open.values()):
            if self._clock() >= invitation.expires_s:
                self._close(invitation, "expired", "expired unused")

    def code_of(self, number: int, attempt: bytes, host: str) -> str | Refusal:
        """The code of an open invitation, or why ``host`` gets no exchange for it.

        ``attempt`` is the client's attempt id: the same attempt is judged once, over however many addresses it comes.
        """
        self.expire()
        invitation = self._open.get(number)
        if invitation is None:
            if self._log_sampler.should_log(host, "asked"):
                self._report(
                    f"{host} asked for invitation {number % 1000}, which is not open (expired, used or never made)"
                )
            return Refusal(self._closed.get(number, "unknown"))
        return _judged(invitation, attempt) or invitation.code

    def judge(self, number: int, attempt: bytes, host: str, seal: Seal, box: bytes) -> PairedNode | Refusal:
        """Open the client's ``box``: the node that it names has proved the code, and the invitation is used up.

        A box that does not open is one wrong guess.

        Raises:
            RemoteProtocolError: the box opens and does not hold a name and a key.
        """
        invitation = self._open.get(number)
        if invitation is None:
            return Refusal(self._closed.get(number, "unknown"))
        if (judged := _judged(invitation, attempt)) is not None:
            return judged
        opened = seal.open("client", box)
        if opened is None:
            return self._count_guess(invitation, attempt, host)
        name, key = expect(("", *opened), "", str, str)
        if not is_key(key):
            raise RemoteProtocolError("the joining node's key is malformed")
        self._close(invitation, "used")
        return PairedNode.of(name, key)

    def _count_guess(self, invitation: PairingInvitation, attempt: bytes, host: str) -> Refusal:
        invitation.num_guesses += 1
        invitation.guessing_hosts[host] = None
        if attempt:
            invitation.failed_attempts.add(attempt)
        tally = f"{invitation.num_guesses} of {MAX_GUESSES}"
        self._report(f"{host} guessed wrong ({tally}) for invitation {invitation.number}")
        if invitation.num_guesses >= MAX_GUESSES:
            hosts = ", ".join(invitation.guessing_hosts)
            self._close(invitation, "void", f"is void after {MAX_GUESSES} wrong guesses, made at {hosts}")
        return Refusal("wrong", MAX_GUESSES - invitation.num_guesses)

    def _close(self, invitation: PairingInvitation, cause: RefusalCause, line: str = "") -> None:
        del self._open[invitation.number]
        self._closed[invitation.number] = cause
        if line:
            self._report(f"invitation {invitation.number} {line}")


def _judged(invitation: PairingInvitation, attempt: bytes) -> Refusal | None:
    """The earlier refusal of the same attempt, if there was one."""
    if attempt in invitation.failed_attempts:
        return Refusal("wrong", MAX_GUESSES - invitation.num_guesses)
    return None
