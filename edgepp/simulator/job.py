"""The state of a simulated request, and of a simulated failure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgepp.engine.request import Request, Timing
from edgepp.simulator.result import Fate, Outcome, Recovery, Spread
from edgepp.simulator.workload import Arrival, Failure


@dataclass
class Job:
    """A request within the simulation."""

    arrival: Arrival
    request: Request
    text: int
    """The token id that the text repeats beyond the shared beginning; different texts have different ids."""
    replica: int = -1
    """The index of the pipeline that has the request; -1 for none."""
    fate: Fate = "refused"
    begun_s: float | None = None
    """When the request was first admitted."""
    stalled: Loss | None = None
    """The failure that interrupted the request, until its next token."""

    @classmethod
    def of(cls, number: int, arrival: Arrival) -> Job:
        """The ``number``-th request, from 0."""
        text = 2 * arrival.conversation if arrival.conversation else 2 * number + 1
        request = Request(
            id=number + 1,
            owner=arrival.owner,
            ids=[0] * arrival.shared + [text] * (arrival.prompt - arrival.shared),
            prompt_tokens=arrival.prompt,
            max_tokens=arrival.answer,
            timing=Timing(arrival.at_s),
        )
        return cls(arrival, request, text)

    def outcome(self) -> Outcome:
        """The result of the request, for the report."""
        at_s, timing = self.arrival.at_s, self.request.timing
        begun_s = 0.0 if self.begun_s is None else self.begun_s - at_s
        first_s = timing.first_token_s - at_s if timing.tokens else 0.0
        last_s = timing.last_token_s - at_s if timing.tokens else 0.0
        return Outcome(self.replica, self.fate, timing.tokens, timing.reused, begun_s, first_s, last_s)


@dataclass
class Loss:
    """A failure, and its cost so far."""

    failure: Failure
    returns_s: float
    """When the last of the failed machines is back."""
    up_s: float = math.inf
    """When the pipeline can begin requests again."""
    failed: int = 0
    begun_again: int = 0
    lost_positions: int = 0
    stalls_s: list[float] = field(default_factory=list)

    def recovery(self) -> Recovery:
        """The cost of the failure, for the report."""
        failure = self.failure
        return Recovery(
            failure.replica,
            failure.stage,
            failure.at_s,
            self.up_s - failure.at_s,
            self.failed,
            self.begun_again,
            self.lost_positions,
            Spread.of(self.stalls_s),
        )
