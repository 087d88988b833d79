"""Invitation codes that one person reads to another: a number, which is no secret, and two words, ``7-tango-lemon``."""

from __future__ import annotations

import difflib
import functools
import re
import secrets
from importlib import resources

from edgepp.errors import UsageError

GUESSES = 3
"""Wrong guesses that make an invitation void; a joiner risks no more of them on false desks."""


@functools.cache
def words() -> tuple[str, ...]:
    """The words that codes are made of."""
    return tuple(resources.files(__package__).joinpath("words.txt").read_text(encoding="ascii").split())


def make_code(number: int) -> str:
    """A new code for the invitation with this number."""
    return f"{number}-{secrets.choice(words())}-{secrets.choice(words())}"


def read_code(text: str) -> tuple[int, str]:
    """The invitation's number, and its code as it was made, from what was typed.

    A slip that can be seen here costs no guess.

    Raises:
        UsageError: it is no code.
    """
    match = re.fullmatch(r"([0-9]{1,2})[- ]+([a-z]+)[- ]+([a-z]+)", text.strip().lower())
    if match is None:
        raise UsageError(f"'{text:.60}' is not a code", "a code looks like 7-tango-lemon")
    for word in match.groups()[1:]:
        if word not in words():
            close = difflib.get_close_matches(word, words(), 1)
            raise UsageError(
                f"'{word:.40}' is not a word that codes have", f"is it '{close[0]}'?" if close else "read it again"
            )
    return int(match[1]), f"{int(match[1])}-{match[2]}-{match[3]}"
