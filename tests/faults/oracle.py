"""The one oracle of all faults.

A request ends in bounded time, with the tokens that one process gives or with a typed error that names a part; then
sequences, keys and values, processes and file descriptors are back at the start.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from edgepp.errors import EdgeppError, InternalError
from tests.waiting import PATIENCE_S

ENDS_S = 90.0
"""Within this time after a fault every request ends, also on a machine that is busy with other tests."""
_NAMES_A_PART = re.compile(
    r"stage \d+ \(layers [\d, -]+\)|the stage with layers [\d-]+|on node \w+|the coordinator at|request \d+"
    r"|layers were distributed|data port"
)


@dataclass
class Outcome:
    """What a request came to."""

    tokens: list[int] = field(default_factory=list)
    error: EdgeppError | None = None
    ended_s: float = 0.0
    """When it ended, by ``time.monotonic``."""

    def is_right(self, expected: Sequence[int]) -> None:
        """Fail unless the request ended with exactly these tokens."""
        assert self.error is None, f"after {len(self.tokens)} tokens: {self.error}"
        assert self.tokens == list(expected)

    def is_right_or_typed(self, expected: Sequence[int]) -> None:
        """Fail unless the request ended with these tokens, or with a first part of them and an error that names why."""
        if self.error is None:
            assert self.tokens == list(expected)
            return
        assert self.tokens == list(expected)[: len(self.tokens)], f"wrong tokens before: {self.error}"
        assert not isinstance(self.error, InternalError), self.error
        assert _NAMES_A_PART.search(str(self.error)), f"names no part: {self.error}"

    def ended_within(self, seconds: float, since_s: float) -> None:
        """Fail if the request ended later than ``seconds`` after ``since_s``."""
        took_s = self.ended_s - since_s
        assert took_s <= seconds, f"ended after {took_s:.1f} s, not {seconds:.0f} s: {self.error or 'with its tokens'}"


def outcome(read: Callable[[list[int]], None]) -> Outcome:
    """What ``read`` comes to, which puts tokens into the list that it is given."""
    found = Outcome()
    try:
        read(found.tokens)
    except EdgeppError as error:
        found.error = error
    found.ended_s = time.monotonic()
    return found


@dataclass(frozen=True)
class Footprint:
    """Processes and what they hold open, by role: all stages, whose places in the ring change, or a node's agent.

    A retired stage process may stay beside its successor for two minutes, so twice as many are no growth.
    """

    held: dict[str, list[Counter[str]]]
    """How many descriptors of each kind, such as sockets, each process of a role holds; fewest first. Pipes are left
    out: their number follows that of the children."""

    @classmethod
    def of(cls, families: Mapping[str, Iterable[psutil.Process]]) -> Footprint:
        """What these processes hold open now, by node; an ended one counts as absent."""
        held: dict[str, list[Counter[str]]] = {}
        for node, family in families.items():
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    is_stage = any("stage" in part for part in process.cmdline())
                    role = "stages" if is_stage else f"other processes of {node}"
                    held.setdefault(role, []).append(_descriptors(process))
        return cls({role: sorted(processes, key=Counter.total) for role, processes in held.items()})

    def grown(self, now: Footprint) -> str:
        """What is more now, as text: processes of a role, or descriptors of its largest; empty for nothing."""
        changes = []
        for role, processes in now.held.items():
            before = self.held.get(role, [])
            if len(processes) > len(before) + (len(before) if role == "stages" else 0):
                changes.append(f"{role}: {len(before)} -> {len(processes)} processes")
            elif processes[-1].total() > before[-1].total():
                changes.append(f"{role}: {before[-1].total()} -> {processes[-1].total()} descriptors")
                changes.append(f"{dict(processes[-1] - before[-1])} more")
        return ", ".join(changes)


def _descriptors(process: psutil.Process) -> Counter[str]:
    folder = Path(f"/proc/{process.pid}/fd")
    if not folder.exists():
        return Counter({"any": process.num_fds()})
    kinds: Counter[str] = Counter()
    for link in folder.iterdir():
        with suppress(OSError):  # closed meanwhile
            kinds[re.sub(r"\d+", "N", str(link.readlink()))] += 1
    del kinds["pipe:[N]"]
    return kinds


def settles(look: Callable[[], str], what: str, within_s: float = PATIENCE_S) -> None:
    """Wait until ``look`` finds nothing more to complain of."""
    until_s = time.monotonic() + within_s
    while complaint := look():
        if time.monotonic() > until_s:
            pytest.fail(f"{what}: {complaint}")
        time.sleep(0.1)
