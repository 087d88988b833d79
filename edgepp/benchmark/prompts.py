"""The text that prompts are made of; no prompt is asked twice."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TITLE_WORDS = 484


@cache
def words() -> tuple[str, ...]:
    """The words of a plain English text, 1,632 of them."""
    here = Path(__file__).parent
    installed = here / "text.txt"
    file = installed if installed.is_file() else here.parents[1] / "bench" / "text.txt"
    return tuple(file.read_text(encoding="utf-8").split())


def numbers() -> Iterator[int]:
    """Numbers of eight digits that begin anywhere.

    Each prompt begins with one of its own. Otherwise the stages would still hold its keys and values from the round, or
    the run of `edgepp bench`, before, and nothing would be computed.
    """
    return itertools.count(secrets.randbelow(80_000_000) + 10_000_000)


def passage(number: int, count: int) -> str:
    """A text of ``count`` words, from anywhere in it, behind its number."""
    text = words()
    start = number * 37
    return f"{number}\n\n" + " ".join(text[(start + i) % len(text)] for i in range(count))


def story(number: int, count: int) -> str:
    """The origin's question for a story, behind a number."""
    return f"{number}: tell a story in {count} words"


def title(number: int) -> str:
    """The origin's question for the title of a text of 484 words, behind a number."""
    return f"{number}: give a title for below text in 10 words: {' '.join(words()[:TITLE_WORDS])}"
