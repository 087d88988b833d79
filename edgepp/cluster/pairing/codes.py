"""Invitation codes that people read to each other, such as ``7-tango-lemon``: a public number, two secret words."""

from __future__ import annotations

import difflib
import functools
import re
import secrets
from importlib import resources

from edgepp.errors import UsageError

MAX_GUESSES = 3
"""Wrong guesses that make an invitation void, and proofs that a client sends at most, since a server may be false."""


@functools.cache
def words() -> tuple[str, ...]:
    """The words of which codes are made."""
    return tuple(resources.files(__package__).joinpath("words.txt").read_text(encoding="ascii").split())


def make_code(number: int) -> str:
    """Draw a new code for the invitation with this number, of two different words."""
    return "-".join([str(number), *secrets.SystemRandom().sample(words(), 2)])


def read_code(text: str) -> tuple[int, str]:
    """Parse a typed code into the invitation's number and the code as ``make_code`` wrote it.

    A typing error that is found by this function costs no guess.

    Raises:
        UsageError: ``text`` is not a code, or has a word that no code has.
    """
    match = re.fullmatch(r"([0-9]{1,2})[- ]+([a-z]+)[- ]+([a-z]+)", text.strip().lower())
    if match is None:
        raise UsageError(f"'{text:.60}' is not a code", "a code looks like 7-tango-lemon")
    for word in match.groups()[1:]:
        if word not in words():
            close = difflib.get_close_matches(word, words(), 1)
            raise UsageError(
                f"'{word:.40}' is not a word that codes have",
                f"is it '{close[0]}'?" if close else "check the code and type it again",
            )
    return int(match[1]), f"{int(match[1])}-{match[2]}-{match[3]}"
