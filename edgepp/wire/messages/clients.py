"""Messages between clients and the coordinator, on its cluster socket: commands, questions and answers.

``request_id`` is the client's number of the command or question.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from edgepp.wire.field_types import (
    Id,
    Text,
    TokenIds,
    Verb,
)


class Call(NamedTuple):
    """Client to coordinator: run the command ``verb`` with the arguments in the JSON frame."""

    request_id: Id
    verb: Verb


class Reply(NamedTuple):
    """Coordinator to client: result of a ``Call``, in the JSON frame."""

    request_id: Id


class Declined(NamedTuple):
    """Coordinator to client: a ``Call`` or ``Ask`` is refused, or its answer cannot be finished."""

    request_id: Id
    reason: Text
    hint: Text


class Ask(NamedTuple):
    """Client to coordinator: generate an answer to the conversation, text or token ids in the JSON frame."""

    request_id: Id


class Cancel(NamedTuple):
    """Client to coordinator: stop generating an answer."""

    request_id: Id


class Waiting(NamedTuple):
    """Coordinator to client: why the answer has not begun."""

    request_id: Id
    reason: Text


class Piece(NamedTuple):
    """Coordinator to client: the next tokens of an answer, and in the text frame the text that they complete."""

    request_id: Id
    tokens: TokenIds


class Answered(NamedTuple):
    """Coordinator to client: the answer is complete; its times and stages are in the JSON frame."""

    request_id: Id


ClientMessage: TypeAlias = Call | Reply | Declined | Ask | Cancel | Waiting | Piece | Answered


def request_id_of(message: object) -> int | None:
    """The client's number of the command or question that a ``ClientMessage`` belongs to; None for other messages."""
    return message.request_id if isinstance(message, ClientMessage) else None
