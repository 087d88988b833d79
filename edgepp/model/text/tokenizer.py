"""Text to token ids and back, without any code of the model's own.

What the model brings is read and run in a process with limits (``text_client``), and text of messages never becomes a
control token (``encoder``).
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
from edgepp.model.text.detokenizer import Detokenizer, decoding
from edgepp.model.text.token_bound import TokenBound
from edgepp.model.text.tokenizer_definition import FILLER

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
    _facts: Mapping[str, Any]
    """See ``definition.read_definition``."""
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
        size = check_readable(path)
        if (templates := path / "additional_chat_templates").is_dir():
            size += check_readable(templates, ("*",))
        ids = end_ids(path)
        client = TextClient(path.name)
        try:
            facts = client.open(path, size)
        except ModelError as error:
            whole = (path / "tokenizer.json").is_file()
            error.hint = "pull the model again" if whole else "use a copy of the model that has a tokenizer.json"
            raise
        finally:
            client.close()  # another process runs it, without what it took to read it
        if facts["eos"] is not None:
            ids.add(int(facts["eos"]))
        tokenizer = cls(path.name, frozenset(ids), facts, client)
        tokenizer.detokenizer()  # what is wrong with it shows here
        return tokenizer

    def encode(self, text: str, special: bool = True, context: int | None = None) -> list[int]:
        """Token ids of a raw text, in which the names of special tokens stand for these tokens.

        With ``special``, the tokens that the model wants around a text (such as a BOS) are added as mlx-lm's
        ``generate`` adds them: not where the text already begins with the BOS.

        Raises:
            UsageError: the text is not Unicode, or so long that it cannot fit into ``context`` tokens.
            ModelError: the tokenizer cannot do it, or not within its limits.
        """
        _check(text)
        bos = self._facts["bos"]
        self._check_length(text, context)
        add = special and (bos is None or not text.startswith(bos))
        return self._client.encode(text, add)

    def chat(self, messages: Sequence[Mapping[str, Any]], context: int | None = None) -> list[int]:
        """Token ids of a conversation, each message a ``role`` and its ``content``, up to where the answer begins.

        Only the chat template writes control tokens: their names in a message are text.

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
            raise UsageError("the conversation is empty", "say something")
        told = [{key: value for key, value in message.items() if value is not None} for message in messages]
        _check(told)
        text, content = self._client.render(template, told, self._variables)
        self._check_length(text, context)
        return self._client.encode_chat(text, content)

    def detokenizer(self) -> Detokenizer:
        """A detokenizer for a new sequence, which goes on in mid-text: nothing is trimmed from its beginning."""
        decoder, tokens, _ = self._decoding
        return decoder(tokens)

    def vocabulary(self) -> dict[str, int]:
        """The id of every token."""
        return {text: token for token, text in self._decoding[1].items()}

    def to_json(self) -> str:
        """The tokenizer itself, in the tokenizers library's format, without padding or truncation."""
        definition: str = self._facts["definition"]
        return definition

    def start(self) -> None:
        """Have the process ready before the first text, without waiting for it."""
        self._client.start()

    def close(self) -> None:
        """End the tokenizer's process. Another text starts it again."""
        self._client.close()

    @cached_property
    def _variables(self) -> dict[str, Any]:
        """What a template knows besides the messages, as mlx-lm tells it."""
        vocabulary = self.vocabulary().keys()
        return {**self._facts["special"], "enable_thinking": any(tokens <= vocabulary for tokens in _THINKING)}

    @cached_property
    def _decoding(self) -> tuple[Callable[[Mapping[int, str]], Detokenizer], dict[int, str], TokenBound | None]:
        """What makes detokenizers, the text of every id that is a token, and the ``TokenBound``."""
        form = json.loads(self._facts["definition"])
        try:
            decoder = decoding(form["decoder"])
        except ModelError as error:
            raise ModelError(f"{self.name} cannot answer: {error}", error.hint) from error
        vocabulary = form["model"]["vocab"]
        if isinstance(vocabulary, dict):
            tokens = {token: text for text, token in vocabulary.items()}
        else:  # ids are places in a list
            tokens = {place: text for place, (text, _) in enumerate(vocabulary) if not text.startswith(FILLER)}
        tokens |= {one["id"]: one["content"] for one in form["added_tokens"]}
        return decoder, tokens, TokenBound.of(form)

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
