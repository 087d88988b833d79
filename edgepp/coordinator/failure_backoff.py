"""Which slots have failed of late, and how long each is left alone for it. Pure: hosts and times in, times out.

Every wait has a longest one and counts from the last failure. What makes up for failures is work: an answer that was
finished, or a stage that ran for ``STEADY_S`` before it failed.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SLOT_RETRY_S = 1.0
"""How long after its first failure a slot is tried again; each further failure doubles it."""
MAX_SLOT_RETRY_S = 16.0
MAX_FAILURES = 3
"""Failures in a row after which others take over a slot's work, where they can."""
FIRST_BAN_S = 30.0
"""For how long, the first time; each further failure doubles it."""
MAX_BAN_S = 600.0
STEADY_S = 10.0
"""A stage that ran for so long had loaded well: a failure after it is the first of a new row."""


@dataclass
class _Record:
    failures: int = 0
    reason: str = ""
    banned_until_s: float = 0.0
    loaded_s: float | None = None
    """Since when its stage runs; None while it does not."""


class FailureBackoff:
    """The failures of every slot, by host id (``node/slot``)."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def failed(self, host: str, reason: str, now_s: float, *, grave: bool = False) -> float:
        """Note a failure, a ``grave`` one as the last of a row; when the slot is to be tried again."""
        record = self._records.setdefault(host, _Record())
        if record.loaded_s is not None and now_s - record.loaded_s >= STEADY_S:
            record.failures = 0
        record.failures = max(record.failures + 1, MAX_FAILURES if grave else 0)
        record.reason, record.loaded_s = reason, None
        if record.failures >= MAX_FAILURES:
            record.banned_until_s = now_s + _growing(FIRST_BAN_S, record.failures - MAX_FAILURES, MAX_BAN_S)
        return now_s + _growing(FIRST_SLOT_RETRY_S, record.failures - 1, MAX_SLOT_RETRY_S)

    def loaded(self, host: str, now_s: float) -> None:
        """Note that a slot has loaded."""
        if host in self._records:
            self._records[host].loaded_s = now_s

    def clear(self, host: str) -> None:
        """Forget the failures of a slot that did its work."""
        self._records.pop(host, None)

    def forget(self, node: str) -> None:
        """Forget the failures of all slots of a node."""
        for host in [host for host in self._records if host.partition("/")[0] == node]:
            del self._records[host]

    def is_banned(self, host: str, now_s: float) -> bool:
        """Whether a slot's work is better done by others now."""
        record = self._records.get(host)
        return record is not None and now_s < record.banned_until_s

    def reason(self, host: str) -> str:
        """Why a slot failed last; empty where it did not."""
        record = self._records.get(host)
        return record.reason if record else ""


def _growing(first_s: float, doublings: int, longest_s: float) -> float:
    return min(longest_s, first_s * 2.0 ** min(doublings, 32))
