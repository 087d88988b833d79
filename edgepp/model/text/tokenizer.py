"""The tokenizer of a model: text to token ids and back, without running code of the model.

Tokenizer files and chat template are read and run in a process with limits (``client``); text of messages never becomes
a control token (``encoder``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgepp.errors import ModelError, UsageError
from edgepp.model.bounded_files import check_readable
from edgepp.model.config.generation import end_ids
from edgepp.model.text.client import TextClient
from edgepp.model.text.detokenizer import Detokenizer, detokenizer_factory
from edgepp.model.text.token_bound import TokenBound
from edgepp.model.text.tokenizer_definition import FILLER

_THINKING_TOKENS = (
    {"<think>", "</think>"},
    {"<longcat_think>", "</longcat_think>"},
    {"<|think:start|>", "<|think:end|>"},
    {"<|channel>", "<channel|>"},
    {"<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"},
)
"""Like mlx-lm, templates get ``enable_thinking`` if the vocabulary has all the tokens of one of these sets."""


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a model. Call ``close`` at the end: using it starts a process."""

    name: str
    eos_ids: frozenset[int]
    """Ids of the tokens that end an answer, from the tokenizer and the generation settings of the model."""
    _facts: Mapping[str, Any]
    """The dict of ``tokenizer_definition.read_definition``."""
    _client: TextClient

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read the tokenizer in the model folder ``path``.

        Raises:
            ModelError: the folder has no tokenizer, or one that is damaged or wants to run code of its own.
        """
        if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise ModelError(
                f"{path} holds no tokenizer", "fetch it with `edgepp models pull`, or copy it into the folder"
            )
        size = check_readable(path)
        if (templates := path / "additional_chat_templates").is_dir():
            size += check_readable(templates, ("*",))
        ids = end_ids(path)
        client = TextClient(path.name)
        try:
            facts = client.open(path, size)
        except ModelError as error:
            is_complete = (path / "tokenizer.json").is_file()
            error.hint = "pull the model again" if is_complete else "use a copy of the model that has a tokenizer.json"
            raise
        finally:
            client.close()  # encoding needs another process, without the libraries that read the folder
        if facts["eos"] is not None:
            ids.add(int(facts["eos"]))
        tokenizer = cls(path.name, frozenset(ids), facts, client)
        tokenizer.detokenizer()  # raises for an unsupported decoder
        return tokenizer

    def encode(self, text: str, special: bool = True, context: int | None = None) -> list[int]:
        """Token ids of a raw text, in which the names of special tokens become these tokens.

        ``special`` adds the tokens that the model wants around a text, such as BOS, like mlx-lm's ``generate``: not if
        the text already begins with BOS.

        Raises:
            UsageError: the text is not Unicode, or so long that it cannot fit into ``context`` tokens.
            ModelError: the tokenizer fails, or exceeds its limits.
        """
        _check_unicode(text)
        bos = self._facts["bos"]
        self._check_length(text, context)
        add = special and (bos is None or not text.startswith(bos))
        return self._client.encode(text, add)

    def chat(self, messages: Sequence[Mapping[str, Any]], context: int | None = None) -> list[int]:
        """Token ids of a conversation up to the beginning of the answer; a message has ``role`` and ``content``.

        Only the chat template writes control tokens: in a message, their names are text.

        Raises:
            UsageError: there is no message, one is not Unicode, or their text cannot fit into ``context`` tokens.
            ModelError: the model has no chat template, or its template refuses the messages.
        """
        template = self._facts["template"]
        if template is None:
            raise ModelError(
                f"{self.name} has no chat template: it only continues text",
                "give the text as it is with --raw, or use an Instruct model",
            )
        if not messages:
            raise UsageError("the conversation is empty", "give at least one message")
        present = [{key: value for key, value in message.items() if value is not None} for message in messages]
        _check_unicode(present)
        text, content = self._client.render(template, present, self._variables)
        self._check_length(text, context)
        return self._client.encode_chat(text, content)

    def detokenizer(self) -> Detokenizer:
        """A detokenizer for a new sequence that continues a text: nothing is trimmed from its beginning."""
        decoder, tokens, _ = self._decoding
        return decoder(tokens)

    def vocabulary(self) -> dict[str, int]:
        """The id of each token by its text."""
        return {text: token for token, text in self._decoding[1].items()}

    def to_json(self) -> str:
        """The tokenizer as a ``tokenizer.json`` of the tokenizers library, without padding and truncation."""
        definition: str = self._facts["definition"]
        return definition

    def start(self) -> None:
        """Start the process in the background, so that it is ready for the first text."""
        self._client.start()

    def close(self) -> None:
        """End the process of the tokenizer; another call starts it again."""
        self._client.close()

    @cached_property
    def _variables(self) -> dict[str, Any]:
        """The variables of a template besides the messages, as mlx-lm gives them."""
        vocabulary = self.vocabulary().keys()
        return {**self._facts["special"], "enable_thinking": any(tokens <= vocabulary for tokens in _THINKING_TOKENS)}

    @cached_property
    def _decoding(self) -> tuple[Callable[[Mapping[int, str]], Detokenizer], dict[int, str], TokenBound | None]:
        """A factory of detokenizers, the text of each token by its id, and the ``TokenBound``."""
        definition = json.loads(self._facts["definition"])
        try:
            decoder = detokenizer_factory(definition["decoder"])
        except ModelError as error:
            raise ModelError(f"{self.name} cannot answer: {error}", error.hint) from error
        vocabulary = definition["model"]["vocab"]
        if isinstance(vocabulary, dict):
            tokens = {token: text for text, token in vocabulary.items()}
        else:  # a list, whose indices are the ids
            tokens = {token: text for token, (text, _) in enumerate(vocabulary) if not text.startswith(FILLER)}
        tokens |= {one["id"]: one["content"] for one in definition["added_tokens"]}
        return decoder, tokens, TokenBound.of(definition)

    def _check_length(self, text: str, context: int | None) -> None:
        """Refuse a text that cannot fit before it occupies the tokenizer's process, which all requests share."""
        bound = self._decoding[2]
        if context is None or bound is None or len(text) < context:
            return
        least = bound.least_tokens(text)
        if least >= context:
            raise UsageError(
                f"a prompt of at least {least} tokens and an answer do not fit into the context of {context} tokens",
                "shorten the prompt",
            )


def _check_unicode(value: Any) -> None:
    """Refuse half a surrogate pair anywhere in ``value``, at which the libraries fail in different ways."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"character {error.start + 1} of the text is half of a surrogate pair, which is not Unicode text",
                "give the text in UTF-8",
            ) from error
    elif isinstance(value, Mapping):
        _check_unicode([*value.keys(), *value.values()])
    elif isinstance(value, Iterable):
        for part in value:
            _check_unicode(part)
