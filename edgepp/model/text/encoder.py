"""Encoding of text to token ids, in which text of messages never becomes a control token."""

from __future__ import annotations

import json
import re
import secrets
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from edgepp.model.text.control_tokens import is_control


class Encoder:
    """A tokenizer made of its definition, the text of a ``tokenizer.json``.

    ``is_control`` says which tokens are control tokens.
    """

    def __init__(self, definition: str, before_rebuild: Callable[[], object] = lambda: None) -> None:
        """Read the definition.

        Args:
            definition: The text of a ``tokenizer.json``.
            before_rebuild: Called before ``encode_chat`` makes another tokenizer, once and only where one is needed.

        Raises:
            Exception: from the tokenizers library, for a damaged definition.
        """
        self._definition = definition
        self._before_rebuild = before_rebuild
        self._plain = _open(definition)
        added = self._plain.get_added_tokens_decoder()
        self._control = {token: one.content for token, one in added.items() if is_control(one.content, one.special)}

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of ``text``, in which names of control tokens become these tokens; ``special`` adds BOS and the like."""
        return self._plain.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, control tokens included, as the tokenizers library decodes it."""
        return str(self._plain.decode(ids, skip_special_tokens=False))

    def encode_chat(self, text: str, content: Sequence[tuple[int, int]]) -> list[int]:
        """Ids of a rendered conversation, whose ranges ``content`` come from messages and never become control tokens.

        If no message contains the name of a control token, these are the ids of ``encode(text, special=False)``.

        Raises:
            ValueError: a message has the name of a control token, which this tokenizer cannot keep apart from text.
        """
        encoding = self._plain.encode(text, add_special_tokens=False)
        ids = encoding.ids
        mask = _mask_of(len(text), content)
        suspects = [position for position, token in enumerate(ids) if token in self._control]
        if not suspects:
            return ids
        offsets = encoding.offsets
        if not any(self._is_from_message(ids[position], text, mask, *offsets[position]) for position in suspects):
            return ids
        return self._guarded.encode("".join(self._with_secret_names(text, content)), add_special_tokens=False).ids

    def _is_from_message(self, token: int, text: str, mask: bytes, begin: int, end: int) -> bool:
        """Whether a control token was made of characters of a message, apart from white space around them."""
        if not any(mark and not char.isspace() for mark, char in zip(mask[begin:end], text[begin:end], strict=True)):
            return False
        unknown = getattr(self._plain.model, "unk_token", None) == self._control[token]
        return not unknown or _folded(self._control[token]) in _folded(text[begin:end])

    def _with_secret_names(self, text: str, content: Sequence[tuple[int, int]]) -> list[str]:
        """The text, in parts, with a secret name for each control token that the template wrote."""
        parts, position = [], 0
        for begin, end in [*content, (len(text), len(text))]:
            parts += [self._names.sub(lambda found: self._secrets[found[0]], text[position:begin]), text[begin:end]]
            position = end
        return parts

    @cached_property
    def _secrets(self) -> dict[str, str]:
        key = secrets.token_hex(16)
        return {name: f"<{key}.{token}>" for token, name in self._control.items()}

    @cached_property
    def _names(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._secrets, key=len, reverse=True))))

    @cached_property
    def _guarded(self) -> Tokenizer:
        """The same tokenizer with secret names for control tokens, so that no message can contain such a name."""
        self._before_rebuild()
        definition = json.loads(self._definition)
        ids = {one.content: token for token, one in self._plain.get_added_tokens_decoder().items()}
        for one in definition["added_tokens"]:
            if one["content"] in self._secrets:
                one |= {"content": self._secrets[one["content"]], "normalized": False, "single_word": False}
        definition["post_processor"] = None
        _rename(definition["model"], self._secrets, ids)
        guarded = _open(json.dumps(definition))
        if any(guarded.token_to_id(self._secrets[name]) != token for token, name in self._control.items()):
            raise ValueError("its control tokens cannot be distinguished from text")
        return guarded


def _open(definition: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = False
    return tokenizer


def _rename(model: dict[str, Any], names: Mapping[str, str], ids: Mapping[str, int]) -> None:
    """Rename tokens of a tokenizer model; their ids stay."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary |= ids
        model["vocab"] = {names.get(name, name): token for name, token in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(name, name), score] for name, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        merges = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
        model["merges"] = [pair for pair in merges if not {*pair, "".join(pair)} & names.keys()]


def _mask_of(length: int, content: Sequence[tuple[int, int]]) -> bytes:
    mask = bytearray(length)
    for begin, end in content:
        mask[begin:end] = b"\1" * (end - begin)
    return bytes(mask)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
