"""Guesses without a model: the text continues as it did after the longest earlier match of its latest tokens. Pure.

Prompt lookup (Saxena 2023) is right where an answer repeats what was there before: editing, code, data. The match may
lie in the text itself or in another text of the same owner, and never in a text of another owner.

Each text has an index of linear size: for every pair of tokens the positions that follow it, newest first, as a chain.
A text grows and shrinks by a token in constant time, and a match that went on is followed without a search. A search
looks at a bounded number of positions, so a guess takes a few microseconds whatever the length of the text.

``bench.lookup`` measures how often a guess is right by the length of its match: 0.2 behind one token, 0.4 behind two,
0.6 behind four, 0.8 behind eight, and nearly always behind sixteen. One token is no reason to guess.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

MIN_MATCH = 2
"""Tokens that must match for a guess."""
MAX_MATCH = 32
"""Tokens that a search compares at most; a match that goes on may grow longer."""
MAX_CANDIDATES = 32
"""Positions of one text that a search looks at; the newest come first."""
MAX_BACK = 64
"""Tokens by which a text may go back between two calls: guesses that were wrong."""
MAX_TOKENS_PER_CALL = 2048
"""Tokens that one call reads, at less than a microsecond each; a longer prompt is read by several calls."""
MAX_TEXTS = 8
"""Finished texts that are kept per owner."""
MAX_KEPT_TOKENS = 1 << 15
"""Tokens of the finished texts that are kept per owner, of about 150 bytes each."""
MAX_OWNERS = 32
"""Owners whose finished texts are kept."""


def common_length(read: Sequence[int], ids: Sequence[int]) -> int:
    """Tokens that ``read``, which was read before, and ``ids`` have in common, by the last ``MAX_BACK`` of these."""
    stop = min(len(read), len(ids))
    start = max(0, stop - MAX_BACK)
    if list(read[start:stop]) == list(ids[start:stop]):
        return stop
    return next((at for at in range(start, stop) if read[at] != ids[at]), stop)


class IndexedText:
    """A text as token ids, and for every pair of tokens in it the chain of positions that follow the pair."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._newest: dict[tuple[int, int], int] = {}
        """The last position that follows a pair."""
        self._before: list[int] = []
        """For each position, the one before it that follows the same pair; -1 for none."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Append ``tokens``."""
        ids, newest, before = self.ids, self._newest, self._before
        for token in tokens:
            if len(ids) < MIN_MATCH:
                before.append(-1)
            else:
                pair = ids[-2], ids[-1]
                before.append(newest.get(pair, -1))
                newest[pair] = len(ids)
            ids.append(token)

    def cut(self, length: int) -> None:
        """Drop all tokens from position ``length`` on."""
        ids, newest = self.ids, self._newest
        while len(ids) > length:
            ids.pop()
            before = self._before.pop()
            if len(ids) < MIN_MATCH:
                continue
            pair = ids[-2], ids[-1]
            if before < 0:
                del newest[pair]
            else:
                newest[pair] = before

    def longest_match(self, ids: Sequence[int], beyond: int) -> tuple[int, int]:
        """The position here behind the longest match of the last tokens of ``ids``, the newest of equal ones.

        Returns the position and the length of the match; (0, 0) unless it is longer than ``beyond``.
        """
        own, end = self.ids, len(ids)
        at = self._newest.get((ids[-2], ids[-1]), -1) if end >= MIN_MATCH else -1
        best, longest = 0, beyond
        for _ in range(MAX_CANDIDATES):
            if at < 0 or longest >= MAX_MATCH:
                break
            length, most = MIN_MATCH, min(MAX_MATCH, at, end)
            while length < most and own[at - length - 1] == ids[end - length - 1]:
                length += 1
            if length > longest:
                best, longest = at, length
            at = self._before[at]
        return (best, longest) if best else (0, 0)


class OwnerTexts:
    """The finished texts of each owner. Belongs to one thread."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, list[IndexedText]] = OrderedDict()
        """Newest text first; the owner who was asked for last comes last."""

    def begin(self, owner: str) -> PromptLookup:
        """Guesses for one request of ``owner``, whose text is kept at its end."""
        return PromptLookup(self, owner)

    def of(self, owner: str) -> Sequence[IndexedText]:
        """The finished texts of ``owner``, newest first."""
        return self._texts.get(owner, ())

    def keep(self, owner: str, text: IndexedText) -> None:
        """Keep a finished text, in place of those that it begins with and of the oldest ones beyond the limits."""
        if len(text.ids) <= MIN_MATCH:
            return
        kept = [text, *(one for one in self.of(owner) if one.ids != text.ids[: len(one.ids)])]
        while len(kept) > MAX_TEXTS or (len(kept) > 1 and sum(len(one.ids) for one in kept) > MAX_KEPT_TOKENS):
            kept.pop()
        self._texts[owner] = kept
        self._texts.move_to_end(owner)
        if len(self._texts) > MAX_OWNERS:
            self._texts.popitem(last=False)


class PromptLookup:
    """Guesses for one request, from its text so far and from the finished texts of its owner."""

    def __init__(self, texts: OwnerTexts, owner: str) -> None:
        self._texts, self._owner = texts, owner
        self._text = IndexedText()
        self._place: tuple[IndexedText, int, int] | None = None
        """A text that matches the end of this one, the position behind the match, and its length; None for none."""

    @property
    def match(self) -> int:
        """Number of tokens of the match from which the last guesses came."""
        return self._place[2] if self._place is not None else 0

    def propose(self, ids: Sequence[int], max_guesses: int) -> Sequence[int]:
        """At most ``max_guesses`` tokens that may follow ``ids``, and no more than match before them.

        ``ids`` differ from those of the last call by less than ``MAX_BACK`` tokens at the end of those, and by any
        number of new ones. A long text gets no guesses until some calls have read it.
        """
        self._read(ids)
        if len(self._text.ids) < len(ids):
            return ()
        if self._place is None:
            self._place = self._search()
        if self._place is None:
            return ()
        where, at, length = self._place
        count = min(max_guesses, length)
        if where is not self._text:
            return where.ids[at : at + count]
        period = len(ids) - at
        return [where.ids[at + n % period] for n in range(count)]

    def close(self) -> None:
        """Keep the text for later requests of its owner."""
        self._texts.keep(self._owner, self._text)

    def _read(self, ids: Sequence[int]) -> None:
        """Update the index to ``ids``, by as many tokens as one call may read."""
        text = self._text
        keep = common_length(text.ids, ids)
        if keep < len(text.ids):
            text.cut(keep)
            self._place = None
        for token in ids[keep : keep + MAX_TOKENS_PER_CALL]:
            self._follow(token)
            text.extend((token,))

    def _follow(self, token: int) -> None:
        """Move the match on by one if the matched text continues with ``token``, else forget the match."""
        if self._place is not None:
            where, at, length = self._place
            goes_on = at < len(where.ids) and where.ids[at] == token
            self._place = (where, at + 1, length + 1) if goes_on else None

    def _search(self) -> tuple[IndexedText, int, int] | None:
        """The position behind the longest match; among equal matches, one in the request's own text."""
        place, longest = None, MIN_MATCH - 1
        for text in (self._text, *self._texts.of(self._owner)):
            at, length = text.longest_match(self._text.ids, longest)
            if length:
                place, longest = (text, at, length), length
        return place
