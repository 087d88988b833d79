"""Faults drawn at random, one after the other, and the time of each."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from bench.faults.processes import FaultyCluster, stop
from bench.toolkit.script import say

_PAUSE_S = (3.0, 8.0)
"""Shortest and longest pause between faults, in seconds."""
_STOPPED_S = (1.0, 6.0)
_AWAY_S = (0.0, 3.0)
"""Time for which a killed node or coordinator stays away."""
_WEIGHTS = {"stage killed": 9, "node killed": 4, "stage stopped": 4, "node stopped": 2, "coordinator killed": 1}
_LAST_COORDINATOR_SHARE = 0.5
"""Share of the run after which the coordinator lives, so that the rest of the run shows its memory."""


@dataclass
class Happened:
    """One fault."""

    kind: str
    began_s: float
    ended_s: float = math.inf
    """Time at which the process was started again or went on, in seconds of ``time.monotonic``."""


class FaultInjector:
    """A series of faults in a cluster, until it is told to stop."""

    def __init__(self, cluster: FaultyCluster, seed: int, minutes: float) -> None:
        self._cluster = cluster
        self._draw = random.Random(seed)  # noqa: S311 - a mix, not a secret
        self._began_s = time.monotonic()
        self._seconds = 60 * minutes
        self.happened: list[Happened] = []
        self.coordinator_memory: list[tuple[float, float]] = []
        """(seconds, MB) since the coordinator's last start."""

    @property
    def counts(self) -> Counter[str]:
        """Faults by kind."""
        return Counter(one.kind for one in self.happened)

    def during(self, began_s: float, ended_s: float) -> list[Happened]:
        """Faults that overlap an interval."""
        return [one for one in tuple(self.happened) if one.began_s <= ended_s and one.ended_s >= began_s]

    def run(self, progress: Callable[[], str]) -> None:
        """Do harm for the given time."""
        until_s = self._began_s + self._seconds
        while (now_s := time.monotonic()) < until_s:
            self._pause(min(until_s - now_s, self._draw.uniform(*_PAUSE_S)))
            kind = self._draw.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
            if kind == "coordinator killed" and now_s > self._began_s + _LAST_COORDINATOR_SHARE * self._seconds:
                kind = "stage killed"
            self.happened.append(Happened(kind, time.monotonic()))
            if self._inject(kind):
                self.happened[-1].ended_s = time.monotonic()
            else:
                self.happened.pop()
            say(f"{until_s - time.monotonic():.0f} s left: {kind}; {dict(self.counts)}; {progress()}")

    def _pause(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            with suppress(psutil.NoSuchProcess):
                rss_bytes = psutil.Process(self._cluster.coordinator.process.pid).memory_info().rss
                self.coordinator_memory.append((time.monotonic() - self._began_s, rss_bytes / 1e6))
            time.sleep(min(1.0, max(0.0, until_s - time.monotonic())))

    def _inject(self, kind: str) -> bool:
        """Do one kind of harm; False where there is nobody to harm."""
        cluster, draw = self._cluster, self._draw
        node = draw.choice(cluster.nodes)
        match kind:
            case "stage killed" | "stage stopped":
                if not (stages := node.stages):
                    return False
                stage = draw.choice(stages)
                if kind == "stage stopped":
                    stop([stage], draw.uniform(*_STOPPED_S))
                else:
                    with suppress(psutil.NoSuchProcess):
                        stage.kill()
            case "node stopped":
                stop(node.tree, draw.uniform(*_STOPPED_S))
            case "node killed":
                node.kill()
                time.sleep(draw.uniform(*_AWAY_S))
                node.start()
            case _:
                cluster.coordinator.kill()
                time.sleep(draw.uniform(*_AWAY_S))
                cluster.coordinator.start()
                cluster.wait("the coordinator", lambda: bool(cluster.status()))
                self.coordinator_memory.clear()
        return True


def is_of_coordinator(faults: Sequence[Happened]) -> bool:
    """Whether one of the faults ended the coordinator, with which its answers end."""
    return any(one.kind == "coordinator killed" for one in faults)
