"""Guesses of another process for one request: what that process was told of the text, and the guesses that arrived.

The text and the guesses behind it are one line of token ids, which both sides keep: guesses that turn out right only
move the end of the text on. Where the text differs, the line is cut there, and guesses made before are void.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence

from edgepp.engine.prompt_lookup import common_length
from edgepp.stage_process.drafting import MAX_AHEAD
from edgepp.tracing.request_trace import RequestTrace
from edgepp.wire.messages.drafts import Guessed, Read

AHEAD = 4
"""Guesses beyond the text that a drafting process keeps ready, unless a call asks for more."""
TOKENS_PER_READ = 256


class RemoteDraft:
    """Guesses for one request. ``propose`` and ``close`` belong to the engine thread, the rest to the client's."""

    def __init__(
        self,
        sequence: int,
        connection: Callable[[], int],
        tell: Callable[[RemoteDraft], None],
        end: Callable[[RemoteDraft], None],
    ) -> None:
        """``connection()`` numbers the present connection to the drafting process, and is 0 without one.

        ``tell`` has the messages of ``take_unsent`` sent, and ``end`` the text forgotten.
        """
        self.sequence = sequence
        self._present, self._tell, self._end = connection, tell, end
        self._lock = threading.Lock()
        self._line: list[int] = []
        """The text as it was told, and the guesses behind it that have arrived."""
        self._told = 0
        """Tokens of the text that was told."""
        self._numbers = itertools.count()
        self._changed = 0
        """The message that changed the text last: guesses of an earlier one are void."""
        self._connection = 0
        """The connection over which the text was told."""
        self._owed = 0
        """Calls of ``propose`` that have to pass until the whole text may be told again."""
        self._hungry = False
        """Whether the last call got fewer guesses than it asked for."""
        self._unsent: list[Read] = []
        self._asked: tuple[int, float] | None = None
        """The newest message that no guesses have answered, and when it was made, by ``time.perf_counter``."""
        self.trace: RequestTrace | None = None
        """Where it is recorded how long guesses took; None for a request that is not traced."""
        self.follows = False
        """Whether the process has read the text and guessed behind it: a guess that is missing now is about to come."""

    def propose(self, ids: Sequence[int], max_guesses: int) -> Sequence[int]:
        """At most ``max_guesses`` tokens that may follow ``ids``, of those that have arrived.

        ``ids`` differ from those of the last call by less than ``MAX_BACK`` tokens at their end, and by new ones.
        """
        connection = self._present()
        if not connection or not ids:
            self.follows = False
            return ()
        with self._lock:
            self._owed = max(0, self._owed - 1)
            if connection != self._connection:
                self.follows = False
                if self._owed:
                    return ()
                self._owed = len(ids) // TOKENS_PER_READ
                self._connection, self._told = connection, -1
                self._line.clear()
                self._unsent.clear()
            keep = common_length(self._line, ids)
            ahead = min(MAX_AHEAD, max(AHEAD, max_guesses))
            if keep < len(ids):
                self._change(ids, keep, ahead)
            elif self._told != len(ids):
                self._unsent.append(Read(self.sequence, next(self._numbers), keep, (), ahead))
            if self._unsent:
                self._asked = self._unsent[-1].number, time.perf_counter()
            self._told = len(ids)
            guesses = self._line[len(ids) : len(ids) + max_guesses]
            self._hungry = len(guesses) < max_guesses
            telling = bool(self._unsent)
        if telling:
            self._tell(self)
        return guesses

    def close(self) -> None:
        """Let the drafting process forget the text; the request has ended."""
        self._end(self)

    def take_unsent(self) -> list[Read]:
        """The messages to send now."""
        with self._lock:
            unsent, self._unsent = self._unsent, []
            return unsent

    def lose(self) -> None:
        """Send the whole text again, since a message was lost, or a process says so.

        A call of ``propose`` sends it that has come after as many calls as the text had messages the last time, so that
        a process which always asks again costs one message per call.
        """
        with self._lock:
            self._connection = 0
            self._unsent.clear()

    def take(self, message: Guessed, vocabulary: int) -> bool:
        """Take in guesses, of ids below ``vocabulary``; whether the engine waits for some, and there are new ones."""
        with self._lock:
            known = len(self._line) - message.position
            if message.number < self._changed or not self._connection or not 0 <= known <= len(message.tokens):
                return False
            tokens = list(itertools.takewhile(lambda token: token < vocabulary, message.tokens))
            if self._line[message.position :] != tokens[:known]:
                return False
            self._line += tokens[known : known + max(0, self._told + MAX_AHEAD - len(self._line))]
            if self._asked is not None and message.number >= self._asked[0]:
                if self.trace is not None:
                    self.trace.span("draft", self._asked[1], time.perf_counter(), len(tokens))
                self._asked = None
            self.follows = True
            woken = self._hungry and len(self._line) > self._told
            self._hungry = self._hungry and not woken
            return woken

    def _change(self, ids: Sequence[int], keep: int, ahead: int) -> None:
        """Tell the text from position ``keep`` on, in pieces, of which the last asks for guesses."""
        self._line[keep:] = ids[keep:]
        for start in range(keep, len(ids), TOKENS_PER_READ):
            tokens = tuple(ids[start : start + TOKENS_PER_READ])
            is_last = start + len(tokens) == len(ids)
            self._changed = next(self._numbers)
            self._unsent.append(Read(self.sequence, self._changed, start, tokens, ahead if is_last else 0))
