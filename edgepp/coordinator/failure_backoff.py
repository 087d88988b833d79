"""Recent failures of stage hosts, and the time for which each host is avoided. Pure: host ids and times in, times out.

Every wait has a maximum and counts from the last failure. Failures are forgiven by work: an answer that was finished,
or a stage that ran for ``STEADY_S`` seconds before it failed.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.backoff import doubled_s

FIRST_SLOT_RETRY_S = 1.0
"""The wait before a retry after the first failure; each further failure doubles it."""
MAX_SLOT_RETRY_S = 16.0
MAX_FAILURES = 3
"""Failures in a row after which a host is banned: other hosts take its layers if they can."""
FIRST_BAN_S = 30.0
"""The length of the first ban; each further failure doubles it."""
MAX_BAN_S = 600.0
STEADY_S = 10.0
"""A stage that ran for this time had loaded well: a failure after it is the first of a new row."""


@dataclass
class _FailureRow:
    """The failures of one host since it worked last."""

    num_failures: int = 0
    reason: str = ""
    banned_until_s: float = 0.0
    loaded_s: float | None = None
    """When its stage was loaded; None while it is not."""
    lasting: bool = False
    """Whether a restart of the node forgives nothing, since the node itself failed."""


class FailureBackoff:
    """The failures of every stage host, by host id (``node/slot``)."""

    def __init__(self) -> None:
        self._rows: dict[str, _FailureRow] = {}

    def failed(self, host: str, reason: str, now_s: float, *, final: bool = False, lasting: bool = False) -> float:
        """Note a failure; returns the time of the next retry.

        A ``final`` failure bans the host at once; a restart of its node does not forgive a ``lasting`` one.
        """
        row = self._rows.setdefault(host, _FailureRow())
        if row.loaded_s is not None and now_s - row.loaded_s >= STEADY_S:
            row.num_failures = 0
        row.num_failures = max(row.num_failures + 1, MAX_FAILURES if final else 0)
        row.reason, row.loaded_s, row.lasting = reason, None, lasting
        if row.num_failures >= MAX_FAILURES:
            row.banned_until_s = now_s + doubled_s(FIRST_BAN_S, row.num_failures - MAX_FAILURES, MAX_BAN_S)
        return now_s + doubled_s(FIRST_SLOT_RETRY_S, row.num_failures - 1, MAX_SLOT_RETRY_S)

    def unreachable(self, host: str, reason: str, now_s: float) -> None:
        """Ban a host whose stage runs, and which the coordinator cannot reach."""
        self._rows.setdefault(host, _FailureRow()).loaded_s = None  # however long the stage has run, it did not work
        self.failed(host, reason, now_s, final=True)

    def loaded(self, host: str, now_s: float) -> None:
        """Note that a host has loaded its layers."""
        if host in self._rows:
            self._rows[host].loaded_s = now_s

    def clear(self, host: str) -> None:
        """Forget the failures of a host that has done its work."""
        self._rows.pop(host, None)

    def forget(self, node: str) -> None:
        """Forget the failures of all hosts on a node that was started again, except lasting ones."""
        for host in [host for host, row in self._rows.items() if host.partition("/")[0] == node and not row.lasting]:
            del self._rows[host]

    def is_banned(self, host: str, now_s: float) -> bool:
        """Whether this host is avoided at ``now_s``, so that other hosts take its layers."""
        row = self._rows.get(host)
        return row is not None and now_s < row.banned_until_s

    def reason(self, host: str) -> str:
        """Why a host failed last; empty where it has not failed."""
        row = self._rows.get(host)
        return row.reason if row else ""
