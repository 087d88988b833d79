"""JSON objects in pieces: valid text passes unchanged, and what passes is always JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.tool_calls.json_stream import MAX_DEPTH, BrokenJsonError, JsonObjectStream

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def passed(pieces: list[str]) -> tuple[str, str | None]:
    stream = JsonObjectStream()
    text, rest = "", None
    for piece in pieces:
        if rest is not None:
            rest += piece
            continue
        more, rest = stream.add(piece)
        text += more
    return text, rest


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.sampled_from([None, 2]), st.booleans(), st.data())
def test_any_object_passes_unchanged_however_it_is_cut(value, indent, ascii_only, data) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    behind = data.draw(st.text(max_size=5))
    whole = text + behind
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert passed(pieces) == (text, behind)


@given(st.text(alphabet="{}[]\":,\\ntrufalse012.-eE\x01 '", max_size=40))
def test_what_passes_whole_is_json(text) -> None:
    try:
        found, rest = passed(list("{" + text))
    except ValueError:
        return
    if rest is not None:
        assert isinstance(json.loads(found), dict)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('{"a": True, "b": [False, None]}', {"a": True, "b": [False, None]}),
        ('{"a": "x\ny\tz\x01"}', {"a": "x\ny\tz\x01"}),
        (r'{"a": "\d+ it\'s C:\Users"}', None),
        (r'{"a": "\d+ it\'s"}', {"a": "\\d+ it's"}),
        (r'{"a": "\ud83d\ude00 \ud83d \ude00 \ud83d\ud83d\ude00\ud83d\n\ud83d"}', {"a": "😀 � � �😀�\n�"}),
    ],
)
def test_what_models_write_and_json_forbids_is_mended(written, meant) -> None:
    if meant is None:  # \U is doubled; \u wants digits, as in JSON
        assert json.loads(passed([written])[0])["a"] == "\\d+ it's C:\\Users"
    else:
        assert json.loads(passed(list(written))[0]) == meant


BROKEN = ["{a: 1}", '{"a" 1}', '{"a": }', '{"a": 01}', '{"a": 1,}', '{"a": NaN}', '{"a": [1}', '{"a": "\\u12g4"}', "[]"]


@pytest.mark.parametrize("text", [*BROKEN, '{"a": ' + "[" * MAX_DEPTH])
def test_what_is_not_json_is_an_error_at_the_same_place_however_it_is_cut(text) -> None:
    with pytest.raises(BrokenJsonError) as whole:
        passed([text])
    with pytest.raises(BrokenJsonError) as pieces:
        passed(list(text))
    assert str(whole.value) == str(pieces.value)


def test_the_end_of_an_object_around_the_arguments_is_skipped() -> None:
    stream = JsonObjectStream.after_a_value()
    assert stream.add(', "id": "x}"}, more') == (', "id": "x}"}', ", more")
