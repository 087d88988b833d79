"""Steps in the ring: which answers are due, and until when. Pure: callers give the time, in monotonic seconds."""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.engine.ring import Send, SendBatch
from edgepp.engine.step_times import StepCost, StepTimes
from edgepp.errors import RemoteProtocolError
from edgepp.wire.messages.data import Batch, Hidden

STEP_S = 5.0
"""Seconds that any step may take: a process that gets no processor for so long does not answer pings either.

Twice that for a kind of step that has not come back before, since kernels are compiled and weights read then; and while
no stage computes, since a connection that lasts loses nothing, and a link may be slower than it was measured.
"""
MAX_STEP_S = 120.0
"""Seconds that a step may take at most, however slow a stage says it is."""
BROKEN_S = 2.0
"""Seconds after which a step is lost that was sent before a connection broke, and that no stage computes."""


@dataclass
class OutstandingStep:
    """A step in the ring."""

    step: Send | SendBatch
    awaited: set[int]
    """Sequences whose rows have neither come back nor failed nor been cancelled."""
    sent_s: float
    """When the step was sent, by ``time.perf_counter``."""
    began_s: float
    """The same in monotonic seconds."""
    cost: StepCost
    reconnects: int
    """Connections of the ring that had been made again by then."""
    overtaken_s: float = 0.0
    """When this step or a later one was answered. The ring is in order, so only a ``Fault`` can still end the rest."""

    def is_answered_by(self, message: Hidden | Batch) -> bool:
        """Whether ``message`` has the rows that this step asked for; of a batch, the rows of some of its sequences."""
        if isinstance(self.step, Send):
            wanted = (self.step.sequence, self.step.want)
            return isinstance(message, Hidden) and (message.sequence, message.rows) == wanted
        return isinstance(message, Batch) and set(message.sequences) <= set(self.step.sequences)


class OutstandingSteps:
    """All steps in the ring by their numbers, oldest first."""

    def __init__(self, times: StepTimes) -> None:
        """``times`` holds the seconds that earlier steps took, and learns from the steps of this ring."""
        self._times = times
        self._steps: dict[int, OutstandingStep] = {}
        self._progress_s = 0.0
        """When a step last came back, or was sent into an empty ring."""

    def __bool__(self) -> bool:
        """Whether a step is in the ring."""
        return bool(self._steps)

    def sent(
        self, number: int, step: Send | SendBatch, cost: StepCost, sent_s: float, now_s: float, reconnects: int = 0
    ) -> dict[int, int]:
        """Add a step; ``sent_s`` is by ``time.perf_counter``; ``reconnects`` counts those of the ring so far.

        Earlier steps of one sequence that begin at the same or a later position are void, and awaited no longer: the
        result has this position for each such sequence.
        """
        void = self._forget_void(step)
        if not self._steps:
            self._progress_s = now_s
        awaited = set(step.sequences) if isinstance(step, SendBatch) else {step.sequence}
        self._steps[number] = OutstandingStep(step, awaited, sent_s, now_s, cost, reconnects)
        return void

    def answered(self, message: Hidden | Batch, now_s: float) -> OutstandingStep | None:
        """The step that ``message`` answers; None where all sequences of that step were cancelled meanwhile.

        The step awaits no further answer afterwards, and neither does any earlier one.

        Raises:
            RemoteProtocolError: the step was answered already, asked for other rows, or an earlier step of the same
                sequence was not answered.
        """
        found = self._steps.get(message.step)
        if found is None:
            return None
        if found.overtaken_s or not found.is_answered_by(message):
            raise RemoteProtocolError("an answer to a step that was answered already, or to another one")
        sequences = message.sequences if isinstance(message, Batch) else (message.sequence,)
        for number, step in self._steps.items():
            if number >= message.step:
                break
            if not step.awaited.isdisjoint(sequences):
                raise RemoteProtocolError("an answer to a step, and none to an earlier step of the same sequence")
        found.awaited.difference_update(sequences)
        self._times.add(found.cost, now_s - max(found.began_s, self._progress_s))
        self._progress_s = now_s
        for number, step in list(self._steps.items()):
            if number > message.step:
                break
            step.overtaken_s = step.overtaken_s or now_s
            if not step.awaited:
                del self._steps[number]
        return found

    def forget(self, sequence: int) -> None:
        """Await nothing more of a sequence, which failed or was freed."""
        for number, step in list(self._steps.items()):
            step.awaited.discard(sequence)
            if not step.awaited:
                del self._steps[number]

    def _forget_void(self, step: Send | SendBatch) -> dict[int, int]:
        starts = (
            dict(zip(step.sequences, step.positions, strict=True))
            if isinstance(step, SendBatch)
            else {step.sequence: step.position}
        )
        void: dict[int, int] = {}
        for number, earlier in list(self._steps.items()):
            if isinstance(earlier.step, Send):
                start = starts.get(earlier.step.sequence)
                if start is not None and start <= earlier.step.position:
                    del self._steps[number]
                    void[earlier.step.sequence] = start
        return void

    def postpone(self, gap_s: float) -> None:
        """Move every deadline back by ``gap_s`` seconds, during which this process did not run."""
        self._progress_s += gap_s
        for step in self._steps.values():
            step.began_s += gap_s
            step.overtaken_s += gap_s if step.overtaken_s else 0.0

    def overdue_s(self, now_s: float, *, idle: bool) -> float | None:
        """Seconds since anything came back, where that is longer than the oldest step may take; else None.

        ``idle`` says that no stage computes.
        """
        if not self._steps:
            return None
        oldest = next(iter(self._steps.values()))
        silent_s = now_s - self._progress_s
        if silent_s <= self._allowed_s(oldest.cost, oldest.cost.total_s, idle=idle):
            return None
        self._times.add(oldest.cost, silent_s)
        return silent_s

    def is_wedged(self, stage: int, busy_s: float) -> bool:
        """Whether a stage has computed one step for longer than any step in the ring is allowed to take."""
        costs = [step.cost for step in self._steps.values()]
        allowed_s = (self._allowed_s(cost, cost.compute_s[stage], idle=False) for cost in costs)
        return bool(costs) and busy_s > max(allowed_s)

    def is_lost(self, now_s: float, reconnects: int) -> bool:
        """Whether no stage computes, and the oldest step was lost with a connection that was made again since."""
        if not self._steps:
            return False
        oldest = next(iter(self._steps.values()))
        silent_s = now_s - self._progress_s
        return reconnects > oldest.reconnects and silent_s > BROKEN_S + self._times.patience_s(
            oldest.cost.kind, oldest.cost.wire_s
        )

    def _allowed_s(self, cost: StepCost, expected_s: float, *, idle: bool) -> float:
        least_s = STEP_S if self._times.knows(cost.kind) and not idle else 2 * STEP_S
        return min(max(least_s, self._times.patience_s(cost.kind, expected_s)), MAX_STEP_S)

    def is_incomplete(self, now_s: float) -> bool:
        """Whether rows of the oldest step are still missing long after that step or a later one was answered."""
        oldest = next(iter(self._steps.values()), None)
        return oldest is not None and bool(oldest.overtaken_s) and now_s - oldest.overtaken_s > STEP_S
