"""Prompts of the benchmark, each used once."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TITLE_WORDS = 484


@cache
def text() -> str:
    """A plain English text, shipped with the package."""
    here = Path(__file__).parent
    installed = here / "text.txt"
    file = installed if installed.is_file() else here.parents[1] / "bench" / "text.txt"
    return file.read_text(encoding="utf-8")


@cache
def words() -> tuple[str, ...]:
    """The words of ``text``, 1,632 of them."""
    return tuple(text().split())


def numbers() -> Iterator[int]:
    """Consecutive numbers of eight digits from a random start.

    Each prompt begins with its own number. Otherwise the stages would still have its keys and values from the last
    round, or from the last run of `edgepp bench`, and would compute nothing.
    """
    return itertools.count(secrets.randbelow(80_000_000) + 10_000_000)


def passage(number: int, count: int) -> str:
    """``number``, then a passage of ``count`` words that depends on ``number``."""
    known = words()
    start = number * 37
    return f"{number}\n\n" + " ".join(known[(start + i) % len(known)] for i in range(count))


def story(number: int, count: int) -> str:
    """``number``, then the origin's question for a story of ``count`` words."""
    return f"{number}: tell a story in {count} words"


def title(number: int) -> str:
    """``number``, then the origin's question for the title of a text of 484 words."""
    return f"{number}: give a title for below text in 10 words: {' '.join(words()[:TITLE_WORDS])}"
