"""The status of a request: every status, and the table of its transitions. Pure."""

from __future__ import annotations

from enum import Enum, auto

from edgepp.errors import LocalProtocolError


class RequestStatus(Enum):
    """The status of a request. Only ``EngineCore`` changes it."""

    WAITING = auto()
    """Waits for its first admission."""
    PREFILL = auto()
    """Admitted; chunks of its tokens are still to be sent."""
    PREFILL_IN_FLIGHT = auto()
    """All tokens are sent; the chunk that brings the next token is in the ring."""
    READY = auto()
    """The newest token waits to be sent."""
    DECODE_IN_FLIGHT = auto()
    """The step with the newest token is in the ring."""
    PREEMPTED = auto()
    """Keys and values were freed for other requests, or lost; the request waits to be prefilled again."""
    FINISHED = auto()
    """Ended by a finish reason or an error. The stages may keep the sequence for future prompts."""

    @property
    def decodes(self) -> bool:
        """Whether the prompt of the request has been computed, or all its tokens were known at a second admission."""
        return self is RequestStatus.READY or self is RequestStatus.DECODE_IN_FLIGHT


class RequestEvent(Enum):
    """What can happen to a request."""

    ADDED = auto()
    ADMITTED = auto()
    CHUNK_SENT = auto()
    LAST_CHUNK_SENT = auto()
    TOKEN_SENT = auto()
    GUESS_SENT = auto()
    """A guess was sent as a step of its own, behind the step with the newest token."""
    SAMPLED = auto()
    CONFIRMED = auto()
    """The sampled token is the guess in the next step, which is now the step with the newest token."""
    PREEMPTED = auto()
    RESUMED = auto()
    """Admitted again with nearly all of its positions on the stages: it decodes at once."""
    CAUGHT_UP = auto()
    """A step of a resumed request came back whose next token was known before."""
    FINISHED = auto()


TRANSITIONS: dict[tuple[RequestStatus, RequestEvent], RequestStatus] = {
    (RequestStatus.WAITING, RequestEvent.ADDED): RequestStatus.WAITING,
    (RequestStatus.WAITING, RequestEvent.ADMITTED): RequestStatus.PREFILL,
    (RequestStatus.WAITING, RequestEvent.FINISHED): RequestStatus.FINISHED,
    (RequestStatus.PREFILL, RequestEvent.CHUNK_SENT): RequestStatus.PREFILL,
    (RequestStatus.PREFILL, RequestEvent.LAST_CHUNK_SENT): RequestStatus.PREFILL_IN_FLIGHT,
    (RequestStatus.PREFILL, RequestEvent.PREEMPTED): RequestStatus.PREEMPTED,
    (RequestStatus.PREFILL, RequestEvent.FINISHED): RequestStatus.FINISHED,
    (RequestStatus.PREFILL_IN_FLIGHT, RequestEvent.SAMPLED): RequestStatus.READY,
    (RequestStatus.PREFILL_IN_FLIGHT, RequestEvent.PREEMPTED): RequestStatus.PREEMPTED,
    (RequestStatus.PREFILL_IN_FLIGHT, RequestEvent.FINISHED): RequestStatus.FINISHED,
    (RequestStatus.READY, RequestEvent.TOKEN_SENT): RequestStatus.DECODE_IN_FLIGHT,
    (RequestStatus.READY, RequestEvent.PREEMPTED): RequestStatus.PREEMPTED,
    (RequestStatus.READY, RequestEvent.FINISHED): RequestStatus.FINISHED,
    (RequestStatus.DECODE_IN_FLIGHT, RequestEvent.SAMPLED): RequestStatus.READY,
    (RequestStatus.DECODE_IN_FLIGHT, RequestEvent.GUESS_SENT): RequestStatus.DECODE_IN_FLIGHT,
    (RequestStatus.DECODE_IN_FLIGHT, RequestEvent.CONFIRMED): RequestStatus.DECODE_IN_FLIGHT,
    (RequestStatus.DECODE_IN_FLIGHT, RequestEvent.CAUGHT_UP): RequestStatus.READY,
    (RequestStatus.DECODE_IN_FLIGHT, RequestEvent.PREEMPTED): RequestStatus.PREEMPTED,
    (RequestStatus.DECODE_IN_FLIGHT, RequestEvent.FINISHED): RequestStatus.FINISHED,
    # added to another core, whose stages replace lost ones, by the simulator:
    (RequestStatus.PREEMPTED, RequestEvent.ADDED): RequestStatus.PREEMPTED,
    (RequestStatus.PREEMPTED, RequestEvent.ADMITTED): RequestStatus.PREFILL,
    (RequestStatus.PREEMPTED, RequestEvent.RESUMED): RequestStatus.READY,
    (RequestStatus.PREEMPTED, RequestEvent.FINISHED): RequestStatus.FINISHED,
}


def next_status(request: int, status: RequestStatus, event: RequestEvent) -> RequestStatus:
    """The status of the request with the id ``request`` after ``event``.

    Raises:
        LocalProtocolError: the event cannot happen to a request of this ``status``.
    """
    try:
        return TRANSITIONS[status, event]
    except KeyError:
        raise LocalProtocolError(f"{event.name} cannot happen to request {request}, which is {status.name}") from None
