"""State of a simulated request and of a simulated failure until each ends."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from edgepp.engine.request import Request
from edgepp.engine.speculation import SpeculationControl, SpeculationCosts
from edgepp.engine.timing import Timing
from edgepp.simulator.result import Distribution, FailureCost, Outcome, Status
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
    speculation: SpeculationControl = field(default_factory=SpeculationControl)

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

    def guess(self, costs: SpeculationCosts) -> int | None:
        """The guess behind all that is in the ring; None where none pays by ``costs``, or the request has no draft.

        Whether a guess is right depends on the text, its position and the request's acceptance alone.
        """
        request, acceptance = self.request, self.arrival.acceptance
        if acceptance is None:
            return None
        if len(request.guesses) >= self.speculation.plan(costs, behind=True, together=False).behind:
            return None
        return guessed(self.text, len(request.ids) + len(request.guesses), acceptance)

    def learn(self, costs: SpeculationCosts, now_s: float) -> None:
        """Learn from the step that was just sampled at ``now_s``."""
        right = int(self.request.guesses[:1] == (self.text,))
        self.request.timing.right += right
        self.speculation.learn(self.request, costs, 1, right, now_s)

    def outcome(self) -> Outcome:
        """Result of the request."""
        at_s, timing = self.arrival.at_s, self.request.timing
        begun_s = 0.0 if self.begun_s is None else self.begun_s - at_s
        first_s = timing.first_token_s - at_s if timing.tokens else 0.0
        last_s = timing.last_token_s - at_s if timing.tokens else 0.0
        return Outcome(
            replica=self.replica,
            status=self.status,
            tokens=timing.tokens,
            reused=timing.reused,
            begun_s=begun_s,
            first_s=first_s,
            last_s=last_s,
            guessed=timing.guessed,
            right=timing.right,
        )


def guessed(text: int, position: int, acceptance: float) -> int:
    """The guess for ``position`` of a text of tokens ``text``: right with probability ``acceptance``."""
    draw = random.Random(text << 32 | position)  # noqa: S311 - not a secret
    return text if draw.random() < acceptance else text + 1


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

    def recovery(self) -> FailureCost:
        """The failure as the report has it."""
        failure = self.failure
        return FailureCost(
            failure.replica,
            failure.stage,
            failure.at_s,
            self.up_s - failure.at_s,
            self.failed,
            self.resumed,
            self.lost_positions,
            Distribution.of(self.stalls_s),
        )
