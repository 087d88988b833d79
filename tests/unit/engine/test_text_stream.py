"""Stop strings are found however the text is cut into pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.engine.request import MAX_STOP_CHARACTERS, MAX_STOPS
from edgepp.engine.text_stream import StopFilter


def _through(pieces: list[str], stop: list[str]) -> tuple[str, bool]:
    """The text that a filter shows, given in pieces, and whether it stopped."""
    held = StopFilter(stop)
    shown = ""
    for piece in pieces:
        text, stopped = held.add(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + held.finish(), False


_TEXT = st.text("ab<|>", max_size=30)


@given(
    st.lists(st.text("ab<|>", max_size=5), max_size=12), st.lists(st.text("ab<|>", min_size=1, max_size=4), max_size=3)
)
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stop: list[str]) -> None:
    text = "".join(pieces)
    shown, stopped = _through(pieces, stop)
    assert stopped == any(s in text for s in stop)
    if not stopped:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert not any(s in shown for s in stop)


def test_a_stop_string_across_pieces_is_never_shown() -> None:
    assert _through(["Hello <", "|en", "d|> more"], ["<|end|>"]) == ("Hello ", True)


def test_an_incomplete_stop_string_is_shown_in_the_end() -> None:
    assert _through(["a <|en"], ["<|end|>"]) == ("a <|en", False)


def test_text_is_not_held_back_without_need() -> None:
    held = StopFilter(["<|end|>"])
    assert held.add("Hello ") == ("Hello ", False)
    assert held.add("<b") == ("<b", False)


@given(st.lists(st.text("ab", max_size=5), max_size=12), st.lists(st.text("ab", min_size=1, max_size=6), max_size=4))
def test_the_text_ends_before_the_stop_string_that_is_complete_first(pieces: list[str], stop: list[str]) -> None:
    """However the text is cut into pieces; of several stop strings that end together, the longest counts."""
    text = "".join(pieces)
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(one) for one in stop)]
    if ends:
        longest = max(len(one) for one in stop if text[: ends[0]].endswith(one))
        assert _through(pieces, stop) == (text[: ends[0] - longest], True)
    else:
        assert _through(pieces, stop) == (text, False)


def test_any_stop_strings_take_a_few_steps_per_character(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: the most, longest and most similar stop strings, and a text that always nearly matches."""
    stop = ["a" * (MAX_STOP_CHARACTERS - n) + "b" for n in range(1, MAX_STOPS + 1)]
    held = StopFilter(stop)
    falls = 0

    class Counted(list[int]):
        def __getitem__(self, at: Any) -> Any:
            nonlocal falls
            falls += 1
            return super().__getitem__(at)

    monkeypatch.setattr(held, "_fall", Counted(held._fall))
    shown, characters = 0, 0
    for _ in range(20):
        for piece in ("a" * 700, "c", "a" * 300):
            text, stopped = held.add(piece)
            shown, characters = shown + len(text), characters + len(piece)
            assert not stopped
            assert characters - shown < MAX_STOP_CHARACTERS
    assert falls <= characters
