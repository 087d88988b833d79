"""The life of all requests, from the queue to the end. Pure.

The core has no socket, tensor, thread or clock. Its driver reports what happened and does what the core answers: the
engine thread (``engine.loop``) with a real ring, the simulator with a modelled one.

    core.add(request)                      a new request: it waits
    for request in core.admit(): ...       requests that begin; others may be preempted for them or for the budget
    for sequence in core.freed(): ...      sequences to free on the stages
    step = core.next_step()                the step to send into the ring; where there is none:
    for request in core.guessable(): ...   requests that may send a guess; ``core.guessed`` notes that one was sent
    due = core.returned(...)               a step came round: sample a token for each of these requests
    core.sampled(request)                  the request's ``ids`` have grown
    core.finish(request)                   the request ended: by its last token, an error, or ``core.cancel``
    core.suspend()                         the stages are lost, or will be replaced: all live requests are preempted
    core.resume(stages, lengths)           other stages, or these again, with what they hold of each sequence

Only the core changes statuses, by the table in ``request_status``. Its parts hold none: ``Ledger`` counts KV positions
and keeps prefixes, ``Scheduler`` orders steps, ``ChunkSizer`` cuts prompts into chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic

from edgepp.engine.chunk_sizer import ChunkSizer, StageTraits
from edgepp.engine.engine_load import EngineLoad
from edgepp.engine.ledger import Ledger
from edgepp.engine.request import AnyRequest, Request
from edgepp.engine.request_status import RequestEvent, RequestStatus, next_status
from edgepp.engine.scheduler import MicroBatch, PrefillChunk, Scheduler, Step
from edgepp.engine.suspended_sequences import SuspendedSequence

_CATCH_UP = 16
"""Known tokens that a resumed request may decode one by one, as before, to get the same bits, and not prefill."""


def _move(request: Request, event: RequestEvent) -> None:
    request.status = next_status(request.id, request.status, event)


class EngineCore(Generic[AnyRequest]):
    """All requests of one pipeline."""

    def __init__(self, stages: Sequence[StageTraits], budget: int | None, spare_steps: int = 0) -> None:
        """Begin with empty ``stages``; all sequences together may take ``budget`` positions.

        Without a budget, as many positions as one sequence may take are kept for the prefixes of future prompts.
        ``spare_steps`` decode steps may travel beyond one per stage.
        """
        self._sizer = ChunkSizer(stages)
        self._scheduler = Scheduler(len(stages), self._sizer, spare_steps)
        self._spare_steps = spare_steps
        spare = min(stage.context for stage in stages)
        self._ledger: Ledger[AnyRequest] = Ledger(budget, spare, shares=all(stage.rewinds for stage in stages))
        self._bounded = budget is not None
        self._preempted = 0
        self._changed = True
        """Whether something happened since the last ``admit`` that may let another request begin."""
        self._growth = 0
        """Positions by which live requests may grow before ``admit`` has to check the budget."""

    @property
    def live(self) -> Mapping[int, AnyRequest]:
        """Admitted requests by sequence."""
        return self._ledger.live

    @property
    def waiting(self) -> tuple[AnyRequest, ...]:
        """Requests that wait to be admitted, new ones and preempted ones, in order of arrival."""
        return tuple(self._ledger.waiting)

    @property
    def is_idle(self) -> bool:
        """Whether no step is in the ring, and none can be sent, until a token is drawn or a request admitted."""
        return self._scheduler.is_idle

    @property
    def in_flight(self) -> bool:
        """Whether a step of any sequence is in the ring."""
        return self._ledger.in_flight

    @property
    def load(self) -> EngineLoad:
        """How busy the engine is now. Safe from any thread."""
        one = self._ledger
        return EngineLoad(len(one.live), len(one.waiting), one.held, one.kept, one.reuse, self._preempted)

    def add(self, request: AnyRequest) -> None:
        """Queue a request.

        Raises:
            Overloaded: too many requests wait; this one is unchanged.
        """
        _move(request, RequestEvent.ADDED)
        self._ledger.add(request)
        self._changed = True

    def admit(self) -> list[AnyRequest]:
        """Admit requests as far as the budget goes, and preempt those that hold too much; the admitted requests.

        Call this before every step: it returns at once unless something changed that matters.
        """
        if not self._changed and self._growth >= 0:
            return []
        self._changed = False
        ledger, admitted = self._ledger, []
        while (request := ledger.over_share()) is not None:
            self._preempt_for_others(request, end_turn=True)
        for request in ledger.admit():
            missing = len(request.ids) - 1 - request.sent
            decodes = request.sent >= request.prompt_tokens and missing <= _CATCH_UP and not request.source
            _move(request, RequestEvent.RESUMED if decodes else RequestEvent.ADMITTED)
            self._scheduler.add(request, decodes=decodes)
            self._changed_if_any_wait()
            admitted.append(request)
        while (request := ledger.over_budget()) is not None:
            self._preempt_for_others(request)
        self._growth = ledger.room if self._bounded else 0
        return admitted

    def freed(self) -> list[int]:
        """Sequences to free on the stages; each is returned once."""
        return self._ledger.freed()

    def next_step(self) -> Step | None:
        """The step to send now, which then counts as sent; None while everything waits for the ring."""
        step, live = self._scheduler.next_step(), self._ledger.live
        match step:
            case PrefillChunk():
                event = RequestEvent.LAST_CHUNK_SENT if step.last else RequestEvent.CHUNK_SENT
                _move(live[step.sequence], event)
                self._changed_if_any_wait()
            case MicroBatch():
                for sequence in step.sequences:
                    _move(live[sequence], RequestEvent.TOKEN_SENT)
        return step

    def speculate(self, request: AnyRequest, guesses: tuple[int, ...]) -> None:
        """Note that the step just returned carries ``guesses`` behind the request's newest token."""
        request.guesses = guesses
        request.timing.guessed += len(guesses)
        self._grow(len(guesses))

    def guessable(self) -> list[AnyRequest]:
        """Requests of which one more guess may be sent now, as a step of its own behind the others, in order.

        Ask where ``next_step`` gives None. A request whose newest step carries guesses itself is not among them.
        """
        found = []
        for sequence in self._scheduler.guessable():
            request = self._ledger.live[sequence]
            own_steps = self._scheduler.guesses_in_ring(sequence) == len(request.guesses)
            if own_steps and request.sent == len(request.ids) and request.room_to_guess > 0:
                found.append(request)
        return found

    def guessed(self, request: AnyRequest, token: int) -> None:
        """Note that ``token`` was sent as a guess, one position behind all of the request that is in the ring."""
        _move(request, RequestEvent.GUESS_SENT)
        self._scheduler.guessed(request)
        request.guesses = (*request.guesses, token)
        request.timing.guessed += 1
        self._grow(1)

    def returned(
        self, sequences: Sequence[int], positions: int, compute_s: Sequence[float]
    ) -> list[tuple[AnyRequest, slice]]:
        """Note that a step came round; the requests to sample for, each with its rows of the step's hidden states.

        The step computed ``positions`` positions of each of ``sequences``; ``compute_s`` holds the seconds of each
        stage. A step of a request that has none in the ring was void: a guess before it was wrong.
        """
        if (first := self._ledger.live.get(sequences[0])) is not None:
            self._sizer.returned(positions, compute_s, decodes=first.status.decodes)
        self._changed_if_any_wait()
        due, row = [], 0
        for sequence in sequences:
            request = self._ledger.live.get(sequence)
            if request is None or not request.steps_in_ring:
                self._ledger.returned(sequence)
                row += 1
                continue
            request.source = 0
            stop = row + (positions if request.status.decodes else 1)
            self._scheduler.returned(request)
            request.settled += positions
            if request.settled >= len(request.ids):
                self._scheduler.draws(request)
                due.append((request, slice(row, stop)))
            elif request.status is RequestStatus.DECODE_IN_FLIGHT:
                _move(request, RequestEvent.CAUGHT_UP)
                self._scheduler.catch_up(request)
            row = stop
        return due

    def sampled(self, request: AnyRequest) -> None:
        """Note that a due request's ``ids`` have grown by its next token and by each guess that was right.

        Where the newest token was guessed in a step of its own, that step is valid; other steps with guesses are void.
        The request may have been preempted since it was due.
        """
        request.drawing = False
        if request.status is RequestStatus.PREEMPTED:
            self._changed = True
            return
        guessed, request.guesses = request.guesses, ()
        if request.steps_in_ring and guessed[:1] == (request.ids[-1],):
            _move(request, RequestEvent.CONFIRMED)
            request.guesses = guessed[1:]
            request.sent, request.settled = len(request.ids), len(request.ids) - 1
            self._scheduler.confirmed(request)
            return
        _move(request, RequestEvent.SAMPLED)
        self._grow(len(request.ids) - request.sent - len(guessed))
        self._scheduler.void(request)
        self._scheduler.sampled(request)

    def preempt(self, request: AnyRequest) -> None:
        """Free a live request's sequence; the request waits before later ones, to be prefilled again."""
        self._preempt(request, end_turn=False)

    def suspend(self) -> list[SuspendedSequence]:
        """Preempt all live requests; what the stages held, which may be lost."""
        for request in list(self._ledger.live.values()):
            _move(request, RequestEvent.PREEMPTED)
            self._scheduler.remove(request)
        return self._ledger.suspend()

    def resume(self, stages: Sequence[StageTraits], lengths: Mapping[int, int]) -> None:
        """Go on over ``stages``, which hold ``lengths`` positions of each sequence; what they lack is prefilled again.

        Sequences that are not in ``lengths`` are lost. Numbers of sequences are not used again.
        """
        self._sizer = ChunkSizer(stages)
        self._scheduler = Scheduler(len(stages), self._sizer, self._spare_steps)
        spare = min(stage.context for stage in stages)
        self._ledger.resume(lengths, spare, shares=all(stage.rewinds for stage in stages))
        self._changed = True

    def finish(self, request: AnyRequest, *, keep: bool = True) -> None:
        """End a request in any status, also one that was never added.

        The stages keep its sequence for the prefixes of future prompts, unless ``keep`` is false, for a sequence that
        may hold wrong values.
        """
        _move(request, RequestEvent.FINISHED)
        self._changed = True
        if not request.sequence:
            self._ledger.withdraw(request)
            return
        self._scheduler.void(request)
        self._scheduler.remove(request)
        if keep:
            self._ledger.finish(request)
        else:
            self._ledger.forget(request.sequence)
            request.sequence = 0

    def cancel(self, request: AnyRequest) -> bool:
        """End a request early; False if it has ended already."""
        if request.status is RequestStatus.FINISHED:
            return False
        self.finish(request)
        return True

    def failed(self, sequence: int) -> AnyRequest | None:
        """Note that the stages have dropped a sequence; the request that must end with an error, if one must.

        A request that began as a copy, or while kept sequences took memory, is preempted and prefilled once more
        without sharing.
        """
        request = self._ledger.live.get(sequence)
        if request is None:
            self._ledger.forget(sequence)
            self._changed = True
        elif not request.alone and (self._ledger.clear() or request.source):
            request.alone = True
            self.preempt(request)
        else:
            return request
        return None

    def _preempt_for_others(self, request: AnyRequest, *, end_turn: bool = False) -> None:
        self._preempted += 1
        self._preempt(request, end_turn=end_turn)

    def _preempt(self, request: AnyRequest, *, end_turn: bool) -> None:
        _move(request, RequestEvent.PREEMPTED)
        self._changed = True
        self._scheduler.remove(request)
        self._ledger.preempt(request, end_turn=end_turn)

    def _changed_if_any_wait(self) -> None:
        """Note a change of shares or prefixes, which matters only while requests wait."""
        self._changed = self._changed or bool(self._ledger.waiting)

    def _grow(self, positions: int) -> None:
        if self._bounded:
            self._growth -= positions
