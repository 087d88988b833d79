"""Messages on the socket of a drafting process: the text of a request, and guesses of what follows it.

``Hello`` is answered by ``Drafter`` (in place of ``Welcome``), and whatever the process does not accept by ``Refused``.
A guess is a proposal and nothing more: the model's own stages verify it, so a wrong or late one changes no answer.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from edgepp.wire.field_types import Count, Id, Label, TokenIds


class Drafter(NamedTuple):
    """Drafting process to coordinator, in reply to ``Hello``: the small model that guesses."""

    node: Label
    pid: Count
    model: Label
    vocabulary: Label
    """Digest of the tokens' texts and ids; guesses are of use to a model with the same one only."""
    context: Count
    """Positions that a text may have at most."""
    backend: Label
    device: Label
    decode_us: Count
    """Measured microseconds of a step of all layers."""


class Read(NamedTuple):
    """Coordinator to drafting process: the text of a sequence, from position ``keep`` on.

    The first ``keep`` tokens are those of the text so far, with the guesses behind it, and ``tokens`` follow. The
    process then guesses until it is ``ahead`` tokens beyond the text.
    """

    sequence: Id
    number: Id
    """Running number of the messages of the sequence, so that a lost one is noticed."""
    keep: Count
    """0 begins the sequence again."""
    tokens: TokenIds
    ahead: Count


class Guessed(NamedTuple):
    """Drafting process to coordinator: guesses of the tokens from ``position`` on, made after ``Read`` ``number``."""

    sequence: Id
    number: Id
    position: Count
    tokens: TokenIds


class Unread(NamedTuple):
    """Drafting process to coordinator: the text of the sequence is not known here (any more); send it again."""

    sequence: Id


class Forget(NamedTuple):
    """Coordinator to drafting process: the request of the sequence has ended (no reply)."""

    sequence: Id


DraftMessage: TypeAlias = Drafter | Read | Guessed | Unread | Forget
