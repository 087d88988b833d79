"""Link for bulk data to the data socket of another stage, made in a thread of its own when it is first needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from edgepp.stage_process.paced_link import PacedLink
from edgepp.wire.transport import Link

RETRY_S = 5.0
"""Time after a failed attempt in which no other one begins."""


@dataclass
class BulkAttempt:
    """An attempt to connect for ``owner``, which sets ``given_up`` where it needs no link any more."""

    owner: BulkLink
    addresses: str
    """Separated by commas."""
    key: str
    """Public key of the other stage's node; empty for a link that is not encrypted."""
    given_up: bool = False


@dataclass(frozen=True)
class BulkConnected:
    """Result of an attempt, for the compute thread. Whoever holds this object has to close the link."""

    attempt: BulkAttempt
    link: Link | None
    reason: str = ""
    """Why there is no link."""

    def hand_over(self) -> None:
        """Give the link to its owner, or close the link."""
        if self.attempt.given_up:
            if self.link is not None:
                self.link.close()
        else:
            self.attempt.owner.connected(self.link, self.reason)


class BulkLink:
    """A link that is made when needed. Belongs to the compute thread."""

    def __init__(self, addresses: str, key: str, connect: Callable[[BulkAttempt], None]) -> None:
        """``connect`` begins an attempt, whose ``BulkConnected`` comes back to the compute thread."""
        self._addresses, self._key = addresses, key
        self._connect = connect
        self._attempt: BulkAttempt | None = None
        self._retry_s = 0.0
        self.pace: PacedLink | None = None
        """None without a connection."""
        self.failure = ""
        """Why the last attempt failed."""

    def open(self) -> PacedLink | None:
        """The link; None while it is being made, which this call begins where it is time."""
        if self.pace is None and self._attempt is None and time.monotonic() >= self._retry_s:
            self._attempt = BulkAttempt(self, self._addresses, self._key)
            self.failure = ""
            self._connect(self._attempt)
        return self.pace

    def connected(self, link: Link | None, reason: str) -> None:
        """Take the result of the attempt."""
        self._attempt = None
        self.failure = reason
        if link is None:
            self._retry_s = time.monotonic() + RETRY_S
        else:
            self.pace = PacedLink(link)

    def drop(self) -> None:
        """Close a link that cannot be used; another one may be made later."""
        self.close()
        self._retry_s = time.monotonic() + RETRY_S

    def close(self) -> None:
        """Close the link, or give the attempt up."""
        if self._attempt is not None:
            self._attempt.given_up = True
        if self.pace is not None:
            self.pace.link.close()
            self.pace = None
