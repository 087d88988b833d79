"""Text to token ids and back: mlx-lm's tokenizer, typed, and without any code of the model's own.

A chat template comes with the model and is rendered in transformers' sandbox.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgepp.errors import ModelError
from edgepp.model.generation import end_ids


class Detokenizer(Protocol):
    """Turns one sequence's tokens into text as they come."""

    def add(self, token: int) -> str:
        """Take the next token; returns the text that became certain, never a part of a character."""

    def finish(self) -> str:
        """The text that was held back."""


@dataclass(frozen=True)
class Tokenizer:
    """One model's tokenizer."""

    name: str
    eos_ids: frozenset[int]
    """Tokens that end an answer, from the tokenizer and the model's generation settings."""
    _inner: Any

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read the tokenizer in the model folder ``path``.

        Raises:
            ModelError: there is none, it is damaged, or it wants to run code of its own.
        """
        if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise ModelError(
                f"{path} holds no tokenizer", "fetch it with `edgepp models pull`, or copy it into the folder"
            )
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # else it complains that torch is absent
        from mlx_lm.tokenizer_utils import load

        ids = end_ids(path)
        try:
            inner = load(path, {"trust_remote_code": False}, eos_token_ids=sorted(ids))
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"the tokenizer of {path.name} cannot be read: {reason}") from error
        return cls(path.name, frozenset(int(token) for token in inner.eos_token_ids), inner)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of ``text``.

        With ``special``, the tokens that the model wants around a text (such as a BOS) are added as mlx-lm's
        ``generate`` adds them: not where the text already begins with the BOS.
        """
        bos = self._inner.bos_token
        add = special and (bos is None or not text.startswith(bos))
        return [int(token) for token in self._inner.encode(text, add_special_tokens=add)]

    def vocabulary(self) -> dict[str, int]:
        """The id of every token."""
        return {str(text): int(token) for text, token in self._inner.get_vocab().items()}

    def to_json(self) -> str:
        """The tokenizer itself, in the tokenizers library's format, without padding or truncation."""
        backend = copy.copy(self._inner._tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        text: str = backend.to_str()
        return text

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, each message a ``role`` and its ``content``, up to where the answer begins.

        Raises:
            ModelError: the model has no chat template, or its template refuses the messages.
        """
        from jinja2 import TemplateError

        if not self._inner.has_chat_template:
            raise ModelError(
                f"{self.name} has no chat template: it only continues text",
                "give the text as it is with --raw, or use an Instruct model",
            )
        try:
            ids = self._inner.apply_chat_template([dict(message) for message in messages], add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise ModelError(f"the chat template of {self.name} refuses these messages: {error}") from error
        return [int(token) for token in ids]

    def detokenizer(self) -> Detokenizer:
        """A detokenizer for a new sequence."""
        return _Streaming(self._inner.detokenizer, len(self._inner))


class _Streaming:
    def __init__(self, inner: Any, vocabulary: int) -> None:
        self._inner = inner
        self._vocabulary = vocabulary

    def add(self, token: int) -> str:
        if token >= self._vocabulary:  # a model's embedding may have more rows than its tokenizer has tokens
            return ""
        self._inner.add_token(token)
        return str(self._inner.last_segment)

    def finish(self) -> str:
        self._inner.finalize()
        return str(self._inner.last_segment)
