"""Stop strings are found however the text is cut into pieces, and each piece has its tokens."""

from __future__ import annotations

import codecs
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.request import MAX_STOP_CHARACTERS, MAX_STOPS, GenerateOptions, SamplingOptions
from edgepp.engine.sampling import Sampled, Sampler
from edgepp.engine.text_stream import StopFilter, TextPiece, TextStream
from edgepp.engine.timing import Timing
from edgepp.model.text.detokenizer import detokenizer_factory
from tests.builders.properties import examples


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


class Byte:
    """Decodes a token as one byte of UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._utf8.decode(bytes([token]))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class Engine:
    """Has no stages, and notes what is cancelled."""

    stages = ()
    lost = None

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self, _: object) -> None:
        self.cancelled = True


def answered(raw: bytes, stop: tuple[str, ...] = (), logprobs: int | None = 2) -> tuple[TextStream, list[TextPiece]]:
    """The stream of an answer of one token per byte of ``raw``, and its pieces."""
    sampling = SamplingOptions(logprobs=logprobs)
    options = GenerateOptions(stop=stop, sampling=sampling)
    request = EngineRequest(
        id=1, owner="", ids=[], prompt_tokens=7, max_tokens=99, timing=Timing(0.0), options=options, eos=frozenset(),
        sampler=Sampler(sampling),
    )  # fmt: skip
    for place, token in enumerate(raw):
        if logprobs is not None:
            request.sampled.append(Sampled(token, -float(place)))
        request.events.put(token)
    request.events.put("length")
    stream = TextStream(Engine(), request, Byte(), lambda token: bytes([token]))  # type: ignore[arg-type]
    return stream, list(stream.pieces())


@settings(max_examples=examples(300))
@given(st.text("aé日<", max_size=12), st.lists(st.text("aé日<", min_size=1, max_size=3), max_size=2))
def test_the_tokens_of_the_pieces_are_those_of_the_text(text: str, stop: list[str]) -> None:
    """Also where text is held back, a character has several tokens, or a stop string ends in the middle of a token."""
    stream, pieces = answered(text.encode(), tuple(stop))
    shown = "".join(piece.text for piece in pieces)
    tokens = [token for piece in pieces for token in piece.tokens]
    assert b"".join(token.raw for token in tokens) == shown.encode()
    assert [token.sampled for token in tokens] == stream.sampled[: len(tokens)]
    assert all(piece.text for piece in pieces[:-1])
    spelled = b"".join(token.raw for token in tokens)
    assert [token.begin for token in tokens] == [len(spelled[:n].decode(errors="ignore")) for n in range(len(spelled))]
    if stream.stop_string is None:
        assert (shown, stream.finish_reason) == (text, "length")
    else:
        assert stream.finish_reason == "stop"
        assert text.startswith(shown + stream.stop_string)
        assert stream.stop_string in stop


def test_a_stream_without_log_probabilities_names_no_tokens() -> None:
    stream, pieces = answered("né".encode(), logprobs=None)
    assert [(piece.text, piece.tokens) for piece in pieces] == [("n", ()), ("é", ()), ("", ())]
    assert stream.token_ids == list("né".encode())


def test_a_part_of_a_character_at_the_end_is_shown_with_its_token() -> None:
    _, pieces = answered("né".encode()[:-1])
    assert [(piece.text, [token.raw for token in piece.tokens]) for piece in pieces] == [
        ("n", [b"n"]),
        ("\ufffd", [b"\xc3"]),
    ]


def test_the_places_of_tokens_that_a_detokenizer_holds_back() -> None:
    """Those named like ``<0x0A>`` are text only when another token follows."""
    spelled = {0: b"\n", 1: b"\xc3", 2: b"\xa9", 3: b"ab"}
    names = {0: "<0x0A>", 1: "<0xC3>", 2: "<0xA9>", 3: "ab"}
    decoders = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    stream, _ = answered(bytes([0, 0, 1, 2, 3, 0, 3]))
    stream = TextStream(
        Engine(),  # type: ignore[arg-type]
        stream._request,
        detokenizer_factory({"type": "Sequence", "decoders": decoders})(names),
        spelled.__getitem__,
    )
    for place, token in enumerate([0, 0, 1, 2, 3, 0, 3]):
        stream._request.sampled[place] = Sampled(token, 0.0)
        stream._request.events.put(token)
    stream._request.events.put("length")
    pieces = list(stream.pieces())
    assert "".join(piece.text for piece in pieces) == "\n\néab\nab"
    assert [token.begin for piece in pieces for token in piece.tokens] == [0, 1, 2, 2, 3, 5, 6]


def test_what_is_known_before_the_first_token() -> None:
    stream, _ = answered(b"")
    assert (stream.prompt_tokens, stream.stop_string) == (7, None)
