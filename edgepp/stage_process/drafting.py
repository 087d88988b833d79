"""Guesses of a small model for the texts of several requests, one unit of work at a time. Knows no socket.

A text and the guesses behind it are one list of token ids. The model holds keys and values of the ids up to some
position; where the text turns out otherwise than guessed, the list is cut there, and with it what the model holds.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

from edgepp.backend.base import EmbeddingAndHead, StageModel
from edgepp.errors import EdgeppError
from edgepp.wire.messages.drafts import Guessed, Read, Unread

log = logging.getLogger("edgepp.draft")

MAX_TEXTS = 8
"""Texts that are read along; the one that was not told of for the longest time makes room for another."""
MAX_AHEAD = 16
"""Guesses beyond a text."""

Reply: TypeAlias = "tuple[bytes, Guessed | Unread]"
"""A message, and the connection that it is for."""


@dataclass
class _Text:
    """The text of one request, as far as it was told, and the guesses behind it."""

    sequence: int
    route: bytes
    """The connection that gets the guesses."""
    number: int = -1
    """Number of the last ``Read``."""
    ids: list[int] = field(default_factory=list)
    """Tokens of the text, then guesses."""
    told: int = 0
    """Tokens of the text."""
    held: int = 0
    """Tokens of ``ids`` whose keys and values the model holds, or more than these."""
    ahead: int = 0
    failed: bool = False

    @property
    def guesses_due(self) -> bool:
        """Whether there are fewer guesses than were asked for."""
        return len(self.ids) - self.told < self.ahead

    @property
    def has_work(self) -> bool:
        """Whether the model can read or guess something for the text now."""
        return bool(self.ids) and not self.failed and (self.held < self.told or self.guesses_due)

    def take(self, message: Read, context: int) -> None:
        """Bring the text to ``message``; guesses that agree with it are kept."""
        tokens, end = list(message.tokens), message.keep + len(message.tokens)
        known = self.ids[message.keep : end]
        agreed = next((at for at, (one, other) in enumerate(zip(known, tokens, strict=False)) if one != other), None)
        if agreed is None:
            agreed = len(known)
        if agreed < len(tokens):
            del self.ids[message.keep + agreed :]
            self.ids += tokens[agreed:]
            self.held = min(self.held, message.keep + agreed)
        self.told, self.number = end, message.number
        self.ahead = max(0, min(message.ahead, MAX_AHEAD, context - end))


class Drafting:
    """A loaded small model, and the texts for which it guesses. Belongs to one thread."""

    def __init__(self, stage: StageModel, ends: EmbeddingAndHead, context: int) -> None:
        """``stage`` has all layers of the small model, of at most ``context`` positions."""
        self._stage, self._ends, self._context = stage, ends, context
        self._texts: OrderedDict[int, _Text] = OrderedDict()
        """By sequence; the text that was told of last comes last."""
        self._turn = 0
        """The sequence whose turn to be worked on came last."""

    @property
    def has_work(self) -> bool:
        """Whether a text has something left to read or to guess."""
        return any(text.has_work for text in self._texts.values())

    def read(self, message: Read, route: bytes) -> Reply | None:
        """Take in new tokens of a text; the known guesses behind these, if the text has changed."""
        text = self._texts.get(message.sequence)
        if message.keep and (text is None or message.number != text.number + 1 or message.keep > len(text.ids)):
            self.forget(message.sequence)
            return route, Unread(message.sequence)
        if text is None:
            text = self._begin(message.sequence, route)
        text.route = route
        self._texts.move_to_end(message.sequence)
        text.failed |= any(token >= self._ends.vocabulary for token in message.tokens)
        text.failed |= message.keep + len(message.tokens) > self._context
        text.take(message, self._context)
        guesses = tuple(text.ids[text.told :])
        return (route, Guessed(text.sequence, text.number, text.told, guesses)) if message.tokens and guesses else None

    def forget(self, sequence: int) -> None:
        """Forget a text; an unknown one is ignored."""
        if self._texts.pop(sequence, None) is not None:
            self._stage.free(sequence)

    def work(self) -> Reply | None:
        """Read one chunk or make one guess, for each text in turn; a guess is returned. Call while ``has_work``."""
        waiting = sorted(text.sequence for text in self._texts.values() if text.has_work)
        self._turn = next((sequence for sequence in waiting if sequence > self._turn), waiting[0])
        text = self._texts[self._turn]
        try:
            return self._step(text)
        except EdgeppError as error:
            log.warning("guessing for a request ends: %s", error)
            text.failed = True
            self._stage.free(text.sequence)
            return None

    def _step(self, text: _Text) -> Reply | None:
        start = min(text.held, len(text.ids) - 1)  # at least the last token is read, for what follows it
        if self._stage.length(text.sequence) > start:
            self._stage.truncate(text.sequence, start)
        tokens = text.ids[start : start + self._stage.chunk]
        hidden = self._stage.extend(text.sequence, self._ends.embed(tokens, start))
        text.held = start + len(tokens)
        if text.held < len(text.ids) or not text.guesses_due:
            return None
        guess = int(self._ends.logits(hidden[-1:])[0].argmax())
        text.ids.append(guess)
        return text.route, Guessed(text.sequence, text.number, len(text.ids) - 1, (guess,))

    def _begin(self, sequence: int, route: bytes) -> _Text:
        while len(self._texts) >= MAX_TEXTS:
            self.forget(next(iter(self._texts)))
        self._stage.open(sequence, self._context)
        text = self._texts[sequence] = _Text(sequence, route)
        return text
