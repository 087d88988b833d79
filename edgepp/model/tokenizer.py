"""Text to token ids and back, without any code of the model's own.

transformers reads a model's tokenizer; what the model brings is run in a process with limits (``text_client``), and
text of messages never becomes a control token (``encoder``).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgepp.errors import EdgeppError, ModelError, UsageError
from edgepp.model.detokenizer import Detokenizer, decoding
from edgepp.model.files import check_readable
from edgepp.model.generation import end_ids
from edgepp.model.text_client import TextClient
from edgepp.printable import one_line

_LARGEST_ID = 1 << 22
_FILLER = "\U000f0000no token "
"""Begins the name of a place without a token."""
_THINKING = (
    {"<think>", "</think>"},
    {"<longcat_think>", "</longcat_think>"},
    {"<|think:start|>", "<|think:end|>"},
    {"<|channel>", "<channel|>"},
    {"<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"},
)
"""mlx-lm lets a template think where the vocabulary has all the tokens of one of these."""


@dataclass(frozen=True)
class Tokenizer:
    """One model's tokenizer. ``close`` it: it has a process of its own once it was used."""

    name: str
    eos_ids: frozenset[int]
    """Tokens that end an answer, from the tokenizer and the model's generation settings."""
    _inner: Any
    _template: str | None
    _client: TextClient

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
        check_readable(path)
        if (templates := path / "additional_chat_templates").is_dir():
            check_readable(templates, ("*",))
        ids = end_ids(path)
        inner = _read(path)
        if inner.eos_token_id is not None:
            ids.add(int(inner.eos_token_id))
        try:
            template = inner.get_chat_template() if inner.chat_template else None
        except ValueError:  # several templates, and none that is the default
            template = None
        tokenizer = cls(path.name, frozenset(ids), inner, template, TextClient(path.name, _definition(inner)))
        tokenizer.detokenizer()  # what is wrong with it shows here
        return tokenizer

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a raw text, in which the names of special tokens stand for these tokens.

        With ``special``, the tokens that the model wants around a text (such as a BOS) are added as mlx-lm's
        ``generate`` adds them: not where the text already begins with the BOS.

        Raises:
            UsageError: the text is not Unicode.
            ModelError: the tokenizer cannot do it, or not within its limits.
        """
        _check(text)
        bos = self._inner.bos_token
        add = special and (bos is None or not text.startswith(bos))
        return self._client.encode(text, add)

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, each message a ``role`` and its ``content``, up to where the answer begins.

        Only the chat template writes control tokens: their names in a message are text.

        Raises:
            UsageError: there is no message, or one is not Unicode.
            ModelError: the model has no chat template, or its template refuses the messages.
        """
        if self._template is None:
            raise ModelError(
                f"{self.name} has no chat template: it only continues text",
                "give the text as it is with --raw, or use an Instruct model",
            )
        if not messages:
            raise UsageError("the conversation is empty", "say something")
        told = [{key: value for key, value in message.items() if value is not None} for message in messages]
        _check(told)
        text, content = self._client.render(self._template, told, self._variables)
        return self._client.encode_chat(text, content)

    def detokenizer(self) -> Detokenizer:
        """A detokenizer for a new sequence, which goes on in mid-text: nothing is trimmed from its beginning."""
        detokenizer: Detokenizer = self._decoding(self._tokens)
        return detokenizer

    def vocabulary(self) -> dict[str, int]:
        """The id of every token."""
        return {str(text): int(token) for text, token in self._inner.get_vocab().items()}

    def to_json(self) -> str:
        """The tokenizer itself, in the tokenizers library's format, without padding or truncation."""
        return _definition(self._inner)

    def start(self) -> None:
        """Have the process ready before the first text, without waiting for it."""
        self._client.start()

    def close(self) -> None:
        """End the tokenizer's process. Another text starts it again."""
        self._client.close()

    @cached_property
    def _variables(self) -> dict[str, Any]:
        """What a template knows besides the messages, as mlx-lm tells it."""
        vocabulary = self._inner.get_vocab().keys()
        thinking = any(tokens <= vocabulary for tokens in _THINKING)
        return {
            **{key: str(value) for key, value in self._inner.special_tokens_map.items()},
            "enable_thinking": thinking,
        }

    @cached_property
    def _decoding(self) -> Any:
        decoder = self._inner.backend_tokenizer.decoder
        try:
            return decoding(None if decoder is None else json.loads(decoder.__getstate__()))
        except ModelError as error:
            raise ModelError(f"{self.name} cannot answer: {error}", error.hint) from error

    @cached_property
    def _tokens(self) -> dict[int, str]:
        backend = self._inner.backend_tokenizer
        vocabulary = backend.get_vocab(with_added_tokens=False)
        tokens = {token: text for text, token in vocabulary.items() if not text.startswith(_FILLER)}
        return tokens | {token: added.content for token, added in backend.get_added_tokens_decoder().items()}


def _read(path: Path) -> Any:
    """transformers' tokenizer, after the tokenizers library has read the file in a process that may die of it."""
    trial = _trial(path)
    try:
        if trial is not None:
            trial.start()
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # else it complains that torch is absent
        from mlx_lm.tokenizer_utils import AutoTokenizer  # with the classes that mlx-lm registers

        if trial is not None:
            trial.load()
    finally:
        if trial is not None:
            trial.close()
    try:
        inner = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if not hasattr(inner, "backend_tokenizer"):
            raise ModelError(f"the tokenizer of {path.name} is of a kind that cannot be used: {type(inner).__name__}")
        if trial is not None:
            _keep_ids(inner, trial.definition)
        return inner
    except EdgeppError:
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = one_line(str(error), 200) or type(error).__name__
        raise ModelError(f"the tokenizer of {path.name} cannot be read: {reason}") from error


def _trial(path: Path) -> TextClient | None:
    file = path / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        return TextClient(path.name, file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer of {path.name} cannot be read: {error}") from error


def _keep_ids(inner: Any, stated: str) -> None:
    """Give added tokens the ids that the file states; the library numbers them anew, maybe over another token."""
    wanted = {one["content"]: one["id"] for one in json.loads(stated).get("added_tokens", ())}
    backend = inner.backend_tokenizer
    if all(backend.token_to_id(text) == token for text, token in wanted.items()):
        return
    if max(wanted.values()) > _LARGEST_ID:
        raise ValueError(f"an added token has the id {max(wanted.values())}")
    form = json.loads(backend.to_str())
    vocabulary = form["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary |= wanted
    else:  # ids are places in a list
        names = {token: text for text, token in wanted.items()}
        lowest = min(score for _, score in vocabulary)
        places = range(len(vocabulary), max(wanted.values()) + 1)
        vocabulary += [[names.get(place, f"{_FILLER}{place}"), lowest] for place in places]
    for one in form["added_tokens"]:
        one["id"] = wanted.get(one["content"], one["id"])
    inner._tokenizer = type(backend).from_str(json.dumps(form))


def _definition(inner: Any) -> str:
    backend = copy.copy(inner.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    text: str = backend.to_str()
    return text


def _check(value: Any) -> None:
    """Refuse half a surrogate pair, wherever it is: it is no text, and the libraries fail at it in different ways."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"character {error.start + 1} of the text is half of a surrogate pair, which is no Unicode text",
                "give the text in UTF-8",
            ) from error
    elif isinstance(value, Mapping):
        _check([*value.keys(), *value.values()])
    elif isinstance(value, Iterable):
        for part in value:
            _check(part)
