"""Text of models: tool calls, streamed JSON, detokenizers and stop strings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from random import Random

from edgepp.tool_calls.json_stream import BrokenJsonError
from edgepp.tool_calls.pythonic_calls import parse
from edgepp.tool_calls.tool_use import CallEnded, CallStarted, Reasoning, Text
from tests.ceiling import ceiling
from tests.fuzz.target import Target
from tests.unit.engine.test_text_stream import answered
from tests.unit.model.test_detokenizer import KINDS, START, build, stream
from tests.unit.tool_calls import templates as t
from tests.unit.tool_calls.answer_cases import CASES, TEXTS
from tests.unit.tool_calls.answers import parts_of
from tests.unit.tool_calls.test_json_stream import passed

_TEMPLATES = tuple(dict.fromkeys([template for template, *_ in CASES] + [template for template, _ in TEXTS]))
_FRAGMENTS = tuple(dict.fromkeys([answer for _, answer, _ in CASES] + [text for _, text in TEXTS]))
_TOKENIZERS = [(kind, build(decoder)) for kind, decoder in KINDS.items()]


def _pieces(text: str, step: int) -> list[str]:
    return [text[at : at + step] for at in range(0, len(text), step)]


def check_calls(raw: bytes) -> None:
    """Parts do not depend on how an answer is cut; ended calls have objects as arguments; the rest stays text.

    The first byte chooses the family, the second the size of the pieces.
    """
    head, answer = raw[:2].ljust(2, b"\0"), raw[2:].decode(errors="replace")
    template = _TEMPLATES[head[0] % len(_TEMPLATES)]
    with ceiling():
        parts = parts_of(template, [answer])
        assert parts_of(template, _pieces(answer, 1 + head[1] % 9)) == parts
    for number, part in enumerate(parts):
        if isinstance(part, CallEnded):
            assert isinstance(json.loads(parts[number - 1].text), dict)  # type: ignore[union-attr]
    if template != t.HARMONY and not any(isinstance(part, CallStarted | Reasoning | str) for part in parts):
        assert "".join(part.text for part in parts if isinstance(part, Text)) == answer


def _answers() -> Iterator[bytes]:
    for number, template in enumerate(_TEMPLATES):
        for own, answer in [*((own, answer) for own, answer, _ in CASES), *TEXTS]:
            if own == template:
                yield bytes((number, 2)) + answer.encode()


def _mutated_answer(raw: bytes, draw: Random) -> bytes:
    answer = raw[2:].decode(errors="replace")
    at, to = sorted(draw.randrange(len(answer) + 1) for _ in range(2))
    other = draw.choice(_FRAGMENTS)
    begin, end = sorted(draw.randrange(len(other) + 1) for _ in range(2))
    joined = draw.choice(
        (answer[:at] + answer[to:], answer[:at] + other[begin:end] + answer[to:], answer[:to] + answer[at:])
    )
    head = bytes((draw.randrange(256), draw.randrange(256))) if draw.random() < 0.2 else raw[:2]
    return head + joined.encode(errors="replace")


def check_json_stream(raw: bytes) -> None:
    """An object passes the same however it is cut, and what passes whole is JSON; calls like Python are literals."""
    text = raw.decode(errors="replace")
    with ceiling():
        assert _outcome([text]) == _outcome(list(text))
        for _, arguments in parse(text, ("f", "g.h")) or ():
            json.dumps(arguments, allow_nan=False)


def _outcome(pieces: Sequence[str]) -> tuple[str, str | None]:
    try:
        found, rest = passed(list(pieces))
    except BrokenJsonError as error:
        return str(error), None
    if rest is not None:
        assert isinstance(json.loads(found), dict)
    return found, rest


def _objects() -> Iterator[bytes]:
    yield from (fragment.encode() for fragment in _FRAGMENTS)
    yield from (b'{"a": [1, -2.5e3, true, None, "\\u00e9\\n"], "b": {}} x', b"[f(a=1, b='x'), g.h(c=[None, {'d': 2}])]")


def check_detokenizer(raw: bytes) -> None:
    """Streamed text is what the tokenizers library decodes; the first byte chooses the kind, two bytes are a token."""
    kind, tokenizer = _TOKENIZERS[(raw[0] if raw else 0) % len(_TOKENIZERS)]
    ids = [int.from_bytes(raw[at : at + 2], "little") % 400 for at in range(1, len(raw), 2)]
    with ceiling():
        before = tokenizer.decode([START], skip_special_tokens=False)
        text = before + "".join(stream(tokenizer, ids))
        assert text == tokenizer.decode([START, *ids], skip_special_tokens=False), kind


def _ids() -> Iterator[bytes]:
    for number in range(len(_TOKENIZERS)):
        for ids in (range(30), range(30, 60), (5, 5, 280, 281, 7), range(180, 310, 3)):
            yield bytes((number,)) + b"".join(one.to_bytes(2, "little") for one in ids)


def check_text_stream(raw: bytes) -> None:
    """A stream's tokens are those of its text, which ends before the first stop string.

    Each byte is a token. The first bytes tell the lengths of two stop strings, which follow.
    """
    lengths, rest = raw[:2].ljust(2, b"\0"), raw[2:]
    cut = [lengths[0] % 6, lengths[0] % 6 + lengths[1] % 6]
    stop = tuple(one.decode(errors="replace") for one in (rest[: cut[0]], rest[cut[0] : cut[1]]) if one)
    body = rest[cut[1] :]
    with ceiling():
        made, pieces = answered(body, stop)
    shown = "".join(piece.text for piece in pieces)
    whole = body.decode(errors="replace")
    ends = [end for end in range(len(whole) + 1) if any(whole[:end].endswith(one) for one in stop)]
    if made.stop_string is None:
        assert not ends
        assert (shown, made.finish_reason) == (whole, "length")
    else:
        assert made.stop_string in stop
        assert shown + made.stop_string == whole[: ends[0]]
    tokens = b"".join(token.raw for piece in pieces for token in piece.tokens)
    assert body.startswith(tokens)


def _streams() -> Iterator[bytes]:
    yield from (
        b"\0\0Hello",
        b"\1\0.One. Two",
        b"\2\3abbcd xabbcd",
        "\0\0aé日<".encode()[:-2],
        b"\3\0\xe6\x97\xa5x\xe6\x97\xa5",
    )


TARGETS = (
    Target("tool-calls", check_calls, _answers, _mutated_answer),
    Target("json-stream", check_json_stream, _objects),
    Target("detokenizer", check_detokenizer, _ids),
    Target("text-stream", check_text_stream, _streams),
)
