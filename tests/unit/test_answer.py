from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgepp.engine.answer import StopFilter


def _through(pieces: list[str], stop: list[str]) -> tuple[str, bool]:
    """What a filter shows of a text that comes in pieces, and whether it stopped."""
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


def test_what_only_looked_like_a_stop_string_is_shown_in_the_end() -> None:
    assert _through(["a <|en"], ["<|end|>"]) == ("a <|en", False)


def test_text_is_not_held_back_without_need() -> None:
    held = StopFilter(["<|end|>"])
    assert held.add("Hello ") == ("Hello ", False)
    assert held.add("<b") == ("<b", False)
