"""State of a simulated request and of a simulated failure until each ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgepp.engine.request import Request
from edgepp.engine.timing import Timing
from edgepp.simulator.result import Distribution, Outcome, Recovery, Status
from edgepp.simulator.workload import Arrival, Failure


@dataclass
class Job:
    """A request with its state in the simulation."""

    arrival: Arrival
    request: Request
    text: int
    """Token id of all tokens after the shared prefix; different texts have different ids."""
    replica: int = -1
    status: Status = "refused"
    begun_s: float | None = None
    stalled: Loss | None = None
    """The failure that interrupted the request, until the next token."""

    @classmethod
    def of(cls, number: int, arrival: Arrival) -> Job:
        """The job of the request with index ``number``, from 0."""
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
        """Result of the request."""
        at_s, timing = self.arrival.at_s, self.request.timing
        begun_s = 0.0 if self.begun_s is None else self.begun_s - at_s
        first_s = timing.first_token_s - at_s if timing.tokens else 0.0
        last_s = timing.last_token_s - at_s if timing.tokens else 0.0
        return Outcome(self.replica, self.status, timing.tokens, timing.reused, begun_s, first_s, last_s)


@dataclass
class Loss:
    """A failure and its cost so far."""

    failure: Failure
    returns_s: float
    """Time when the last failed machine is back."""
    up_s: float = math.inf
    failed: int = 0
    resumed: int = 0
    lost_positions: int = 0
    stalls_s: list[float] = field(default_factory=list)

    def recovery(self) -> Recovery:
        """The failure as the report has it."""
        failure = self.failure
        return Recovery(
            failure.replica,
            failure.stage,
            failure.at_s,
            self.up_s - failure.at_s,
            self.failed,
            self.resumed,
            self.lost_positions,
            Distribution.of(self.stalls_s),
        )
