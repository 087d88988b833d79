"""Incremental decoding of tokens: the decoders of the tokenizers library, one token at a time.

The joined pieces of an answer are the text that the library decodes, except that nothing is trimmed from the beginning,
since an answer continues a text. The work per token does not depend on the length of the answer.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from edgepp.errors import ModelError
from edgepp.model.text.decoder_growth import check_growth


class Detokenizer:
    """Decoder of the tokens of one sequence, which takes them one by one."""

    def __init__(self, tokens: Mapping[int, str], steps: list[_Step]) -> None:
        self._tokens = tokens
        self._steps = steps

    def add(self, token: int) -> str:
        """Take the next token; returns text that later tokens cannot change, never a part of a character.

        An id without a token has no text: an embedding may have more rows than the tokenizer has tokens.
        """
        text = self._tokens.get(token)
        return "" if text is None else "".join(_run([text], self._steps))

    def finish(self) -> str:
        """End the sequence; returns the text that was held back."""
        pieces: list[str] = []
        for n, step in enumerate(self._steps):
            pieces += _run(step.finish(), self._steps[n + 1 :])
        return "".join(pieces)

    def only(self, token: int) -> bytes:
        """The bytes of a sequence of this one ``token``, which may be a part of a character."""
        text = self._tokens.get(token, "")
        for step in self._steps:
            if isinstance(step, _Bytes):
                return _raw(text)
            if isinstance(step, _ByteFallback) and BYTE_TOKEN.fullmatch(text):
                return bytes([int(text[3:5], 16)])
        return (self.add(token) + self.finish()).encode(errors="replace")


def detokenizer_factory(definition: Mapping[str, Any] | None) -> Callable[[Mapping[int, str]], Detokenizer]:
    """A factory, called with the texts of tokens by id, of detokenizers for the ``decoder`` of a ``tokenizer.json``.

    Raises:
        ModelError: the kind of decoder is not supported.
    """
    _steps(definition)  # raises for an unsupported decoder
    return lambda tokens: Detokenizer(tokens, _steps(definition))


class _Step(Protocol):
    """A decoder of a chain, which turns tokens into tokens; ``finish`` returns the tokens that were held back."""

    def add(self, token: str) -> list[str]: ...

    def finish(self) -> list[str]: ...


def _run(tokens: list[str], steps: list[_Step]) -> list[str]:
    for step in steps:
        tokens = [decoded for token in tokens for decoded in step.add(token)]
        if not tokens:
            break
    return tokens


class _PerToken:
    """A step that changes each token independently of the others."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change

    def add(self, token: str) -> list[str]:
        return [self._change(token)]

    def finish(self) -> list[str]:
        return []


class _Bytes:
    """Decoder of GPT-2's alphabet: each character of a token stands for a byte of UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: str) -> list[str]:
        return [self._utf8.decode(_raw(token))]

    def finish(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


class _ByteFallback:
    """Decoder of tokens such as ``<0xE2>``, which stand for bytes; a run of such tokens is text only if it is UTF-8."""

    def __init__(self) -> None:
        self._held = bytearray()

    def add(self, token: str) -> list[str]:
        if BYTE_TOKEN.fullmatch(token):
            self._held.append(int(token[3:5], 16))
            return []
        return [*self.finish(), token]

    def finish(self) -> list[str]:
        held, self._held = bytes(self._held), bytearray()
        try:
            return [held.decode()] if held else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(held)


class _StripEnd:
    """Removal of a character from the end of the whole text, at most ``max_count`` times."""

    def __init__(self, char: str, max_count: int) -> None:
        self._char, self._max_count, self._held = char, max_count, ""

    def add(self, token: str) -> list[str]:
        text = self._held + token
        kept = max(len(text.rstrip(self._char)), len(text) - self._max_count)
        self._held = text[kept:]
        return [text[:kept]]

    def finish(self) -> list[str]:
        return []


class _ReplaceInText:
    """Replacement of a string anywhere in the whole text, also across tokens."""

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
    """Replacement of a suffix, which marks the end of a word, by a space, except in the last token."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: str | None = None

    def add(self, token: str) -> list[str]:
        held, self._held = self._held, token
        return [] if held is None else [held.replace(self._suffix, " ")]

    def finish(self) -> list[str]:
        return [] if self._held is None else [self._held.replace(self._suffix, "")]


class _Ctc:
    """Decoder that counts repeated tokens once; a pad token separates two equal tokens."""

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
        return [_PerToken(lambda token: " " + token)]
    chain = definition["decoders"] if definition["type"] == "Sequence" else [definition]
    check_growth(chain)
    steps: list[_Step] = []
    is_joined = False  # whether the decoders that follow get the whole text as one token
    for one in chain:
        step = _text_step(one) if is_joined else _token_step(one)
        if step is None:
            raise ModelError(
                f"its tokenizer has an unsupported decoder: {str(one)[:100]}",
                "use another model, or one of `edgepp models list`",
            )
        steps.append(step)
        is_joined = is_joined or one["type"] in ("Fuse", "ByteLevel")
    return steps


def _token_step(one: Mapping[str, Any]) -> _Step | None:
    match one:
        case {"type": "ByteLevel"}:
            return _Bytes()
        case {"type": "ByteFallback"}:
            return _ByteFallback()
        case {"type": "Fuse"}:
            return _PerToken(lambda token: token)
        case {"type": "Metaspace", "replacement": str(mark)}:
            return _PerToken(lambda token: token.replace(mark, " "))
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if 0 < len(old) <= _MAX_OLD:
            return _PerToken(lambda token: token.replace(old, new))
        case {"type": "Strip", "content": str(char), "start": int(start), "stop": int(stop)}:
            return _PerToken(lambda token: _stripped(token, char, start, stop))
        case {"type": "WordPiece", "prefix": str(prefix), "cleanup": bool(cleanup)}:
            return _PerToken(lambda token: _word(token, prefix, cleanup))
        case {"type": "BPEDecoder", "suffix": str(suffix)}:
            return _Suffix(suffix)
        case {"type": "CTC", "pad_token": str(pad), "word_delimiter_token": str(delimiter), "cleanup": bool(cleanup)}:
            return _Ctc(pad, delimiter, cleanup)
    return None


def _text_step(one: Mapping[str, Any]) -> _Step | None:
    match one:
        case {"type": "Fuse"}:
            return _PerToken(lambda token: token)
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if 0 < len(old) <= _MAX_OLD:
            return _ReplaceInText(old, new)
        case {"type": "Strip", "content": str(char), "stop": int(stop)}:
            return _StripEnd(char, stop)  # the start of the text is before the answer
    return None


def _raw(token: str) -> bytes:
    """The bytes of a token in the alphabet of GPT-2, or of an added token in UTF-8."""
    values = [BYTE_OF_CHARACTER.get(char) for char in token]
    raw = bytes(byte for byte in values if byte is not None)
    return raw if len(raw) == len(token) else token.encode("utf-8", "replace")


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
    """The byte of each character in the alphabet of GPT-2."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(rest)}


BYTE_OF_CHARACTER = _alphabet()
_MAX_OLD = 64  # limit of the characters of a replaced string, and so of the text held back
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
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
