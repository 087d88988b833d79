"""Tokens to text as they come: each decoder of the tokenizers library, made to work piece by piece.

The pieces of an answer joined are what the library decodes, relative to the text before: nothing is trimmed from the
beginning, as an answer begins in mid-text. The work for a token does not grow with the answer's length.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from edgepp.errors import ModelError


class Detokenizer:
    """Turns one sequence's tokens into text as they come."""

    def __init__(self, tokens: Mapping[int, str], steps: list[_Step]) -> None:
        self._tokens = tokens
        self._steps = steps

    def add(self, token: int) -> str:
        """Take the next token; returns the text that became certain, never a part of a character.

        An id that is no token has no text: a model's embedding may have more rows than its tokenizer has tokens.
        """
        text = self._tokens.get(token)
        return "" if text is None else "".join(_run([text], self._steps))

    def finish(self) -> str:
        """The text that was held back."""
        pieces: list[str] = []
        for place, step in enumerate(self._steps):
            pieces += _run(step.finish(), self._steps[place + 1 :])
        return "".join(pieces)


def decoding(definition: Mapping[str, Any] | None) -> Callable[[Mapping[int, str]], Detokenizer]:
    """What makes detokenizers from the ``decoder`` of a ``tokenizer.json`` and a table of tokens by their ids.

    Raises:
        ModelError: the decoder is of a kind that is not known.
    """
    _steps(definition)  # what is wrong shows here
    return lambda tokens: Detokenizer(tokens, _steps(definition))


class _Step(Protocol):
    """One decoder of a chain: tokens in, tokens out."""

    def add(self, token: str) -> list[str]: ...

    def finish(self) -> list[str]: ...


def _run(tokens: list[str], steps: list[_Step]) -> list[str]:
    for step in steps:
        tokens = [given for token in tokens for given in step.add(token)]
        if not tokens:
            break
    return tokens


class _Each:
    """Every token for itself."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change

    def add(self, token: str) -> list[str]:
        return [self._change(token)]

    def finish(self) -> list[str]:
        return []


class _Bytes:
    """GPT-2's alphabet: each character of a token stands for a byte, and bytes are UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: str) -> list[str]:
        found = [BYTE_OF_CHARACTER.get(char) for char in token]
        raw = bytes(byte for byte in found if byte is not None)
        return [self._utf8.decode(raw if len(raw) == len(token) else token.encode("utf-8", "replace"))]

    def finish(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


class _ByteFallback:
    """Tokens such as ``<0xE2>`` stand for bytes. A run of them is text only if all of it is UTF-8."""

    def __init__(self) -> None:
        self._held = bytearray()

    def add(self, token: str) -> list[str]:
        if _BYTE_TOKEN.fullmatch(token):
            self._held.append(int(token[3:5], 16))
            return []
        return [*self.finish(), token]

    def finish(self) -> list[str]:
        held, self._held = bytes(self._held), bytearray()
        try:
            return [held.decode()] if held else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(held)


class _LastStripped:
    """At most so many of one character are taken from the end of the whole text."""

    def __init__(self, char: str, most: int) -> None:
        self._char, self._most, self._held = char, most, ""

    def add(self, token: str) -> list[str]:
        text = self._held + token
        kept = max(len(text.rstrip(self._char)), len(text) - self._most)
        self._held = text[kept:]
        return [text[:kept]]

    def finish(self) -> list[str]:
        return []


class _WholeReplaced:
    """A string replaced wherever it stands in the whole text, also across tokens."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new, self._held = old, new, ""

    def add(self, token: str) -> list[str]:
        *done, rest = (self._held + token).split(self._old)
        held = next(n for n in range(min(len(rest), len(self._old) - 1), -1, -1) if rest.endswith(self._old[:n]))
        self._held = rest[len(rest) - held :]
        return ["".join(part + self._new for part in done) + rest[: len(rest) - held]]

    def finish(self) -> list[str]:
        return [self._held]


class _Suffix:
    """A mark at the end of a word is a space, but for the last token."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: str | None = None

    def add(self, token: str) -> list[str]:
        held, self._held = self._held, token
        return [] if held is None else [held.replace(self._suffix, " ")]

    def finish(self) -> list[str]:
        return [] if self._held is None else [self._held.replace(self._suffix, "")]


class _Ctc:
    """A token repeated is one, and a pad stands between two of a kind."""

    def __init__(self, pad: str, delimiter: str, cleanup: bool) -> None:
        self._pad, self._delimiter, self._cleanup = pad, delimiter, cleanup
        self._last: str | None = None

    def add(self, token: str) -> list[str]:
        if token == self._last:
            return []
        self._last, text = token, token.replace(self._pad, "")
        return [_cleaned(text).replace(self._delimiter, " ") if self._cleanup else text]

    def finish(self) -> list[str]:
        return []


def _steps(definition: Mapping[str, Any] | None) -> list[_Step]:
    if definition is None:
        return [_Each(lambda token: " " + token)]
    chain = definition["decoders"] if definition["type"] == "Sequence" else [definition]
    steps: list[_Step] = []
    whole = False  # whether what follows sees one token: the whole text
    for one in chain:
        step = _whole(one) if whole else _single(one)
        if step is None:
            raise ModelError(
                f"its tokenizer decodes in a way that is not known: {str(one)[:100]}",
                "use another model, or one of `edgepp models list`",
            )
        steps.append(step)
        whole = whole or one["type"] in ("Fuse", "ByteLevel")
    return steps


def _single(one: Mapping[str, Any]) -> _Step | None:
    match one:
        case {"type": "ByteLevel"}:
            return _Bytes()
        case {"type": "ByteFallback"}:
            return _ByteFallback()
        case {"type": "Fuse"}:
            return _Each(lambda token: token)
        case {"type": "Metaspace", "replacement": str(mark)}:
            return _Each(lambda token: token.replace(mark, " "))
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if 0 < len(old) <= _LONGEST:
            return _Each(lambda token: token.replace(old, new))
        case {"type": "Strip", "content": str(char), "start": int(start), "stop": int(stop)}:
            return _Each(lambda token: _stripped(token, char, start, stop))
        case {"type": "WordPiece", "prefix": str(prefix), "cleanup": bool(cleanup)}:
            return _Each(lambda token: _word(token, prefix, cleanup))
        case {"type": "BPEDecoder", "suffix": str(suffix)}:
            return _Suffix(suffix)
        case {"type": "CTC", "pad_token": str(pad), "word_delimiter_token": str(delimiter), "cleanup": bool(cleanup)}:
            return _Ctc(pad, delimiter, cleanup)
    return None


def _whole(one: Mapping[str, Any]) -> _Step | None:
    match one:
        case {"type": "Fuse"}:
            return _Each(lambda token: token)
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if 0 < len(old) <= _LONGEST:
            return _WholeReplaced(old, new)
        case {"type": "Strip", "content": str(char), "stop": int(stop)}:
            return _LastStripped(char, stop)  # the start lies before the answer
    return None


def _stripped(token: str, char: str, start: int, stop: int) -> str:
    begin = min(len(token) - len(token.lstrip(char)), start)
    return token[begin : max(begin, len(token.rstrip(char)), len(token) - stop)]


def _word(token: str, prefix: str, cleanup: bool) -> str:
    text = token[len(prefix) :] if token.startswith(prefix) else " " + token
    return _cleaned(text) if cleanup else text


def _cleaned(text: str) -> str:
    for old, new in _CLEANUP:
        text = text.replace(old, new)
    return text


def _alphabet() -> dict[str, int]:
    """GPT-2's character for each byte, the other way round."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(rest)}


BYTE_OF_CHARACTER = _alphabet()
_LONGEST = 64
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
