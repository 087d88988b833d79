"""The tokenizer of a model: text to token ids and back, without running code of the model.

Tokenizer files and chat template are read and run in a process with limits (``client``); text of messages never becomes
a control token (``encoder``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgepp.errors import ContextExceeded, ModelError, UsageError
from edgepp.model.bounded_files import tokenizer_files
from edgepp.model.config.generation import end_ids
from edgepp.model.text.client import TextClient
from edgepp.model.text.control_tokens import is_control
from edgepp.model.text.conversation import Conversation, EncodedPrompt, Prompt
from edgepp.model.text.definition_cache import cached_definition
from edgepp.model.text.detokenizer import Detokenizer, detokenizer_factory
from edgepp.model.text.prompt_check import characters_of, check_prompt, rendered_characters_of
from edgepp.model.text.token_bound import TokenBound, characters_per_token
from edgepp.model.text.tokenizer_definition import FILLER

_THINKING_TOKENS = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|channel>", "<channel|>"),
    ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
)
"""Tokens around reasoning, by family. As in mlx-lm, a template gets ``enable_thinking`` if all tokens of one exist."""
_MAX_TOKEN_CHARACTERS = 4096
"""Limit of the characters of a token, since an answer may consist of the longest token alone."""
_LONG = 1 << 17
"""Number of characters of a text, or of ids, from which the second process does the work, which may take seconds."""
_TURN_ENDS = frozenset(
    ("<|eom_id|>", "<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end_of_turn|>", "<|eot|>", "<|return|>", "<|call|>")
)
"""Control tokens that end a turn in every model that has them, also where a model's settings forget them."""


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a model. Call ``close`` at the end: using it starts a process."""

    name: str
    eos_ids: frozenset[int]
    """Ids of the tokens that end an answer, from the tokenizer and the generation settings of the model."""
    _facts: Mapping[str, Any]
    """The dict of ``tokenizer_definition.read_definition``."""
    _tokens: _Tokens
    _client: TextClient
    _long_client: TextClient
    """A second process, for long texts, behind which no other text waits; the process ends soon after each text."""

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
        files = tokenizer_files(path)
        size_bytes = sum(size for _, size in files)
        ids = end_ids(path)
        client = TextClient(path.name)
        try:
            facts = cached_definition(path, files, lambda: client.open(path, size_bytes))
        except ModelError as error:
            is_complete = (path / "tokenizer.json").is_file()
            error.hint = "pull the model again" if is_complete else "use a copy of the model that has a tokenizer.json"
            raise
        finally:
            client.close()
        if facts["eos"] is not None:
            ids.add(int(facts["eos"]))
        tokens = _Tokens.of(path.name, json.loads(facts["definition"]))
        ids |= {token for name, token in tokens.control.items() if name in _TURN_ENDS}
        # Encoding has processes of its own, without the libraries that read the folder.
        clients = (TextClient(path.name, facts["definition"]) for _ in range(2))
        return cls(path.name, frozenset(ids), facts, tokens, *clients)

    @property
    def template(self) -> str:
        """The chat template for conversations with tools, which tells their format; empty if there is no template."""
        return self._facts["tool_template"] or self._facts["template"] or ""

    @cached_property
    def thinking_tokens(self) -> tuple[str, ...]:
        """The tokens around the reasoning of a model that thinks, the opening one first; empty for other models."""
        vocabulary = self.vocabulary().keys()
        return next((tokens for tokens in _THINKING_TOKENS if vocabulary >= set(tokens)), ())

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Ids of the control tokens by their names, such as ``<|im_end|>`` and ``<tool_call>``; see ``is_control``."""
        return self._tokens.control

    def encode_prompt(
        self, prompt: Prompt, context: int | None = None, owner: str = "", *, answered: bool = True
    ) -> EncodedPrompt:
        """The token ids of ``prompt``, exactly as an answer to it has them.

        Names of special tokens become these tokens in a raw text, which gets BOS unless it begins with BOS. In a
        conversation only the chat template writes control tokens: in the text of messages and tools, their names are
        text. Token ids stay as they are.

        Args:
            prompt: The prompt to encode.
            context: Tokens that prompt and answer may have together. A text that is certainly longer is refused before
                it occupies the tokenizer's process, which all requests share.
            owner: Owner of the prompt; the tokenizer's process serves owners in turns.
            answered: Whether the prompt is to be answered: it must not be empty, and leave room in ``context``.

        Raises:
            PromptRefused: the chat template does not take the conversation.
            ContextExceeded: the prompt leaves no room for an answer in ``context`` tokens, or is much longer.
            UsageError: the prompt is empty, malformed, not Unicode text, or holds ids that are no tokens.
            Overloaded: many other texts of the owner wait to be encoded.
            ModelError: the model has no chat template, or template or tokenizer fail or exceed their limits.
        """
        check_prompt(prompt)
        if context is not None:
            self._check_certainly_fits(prompt, context)
        if isinstance(prompt, str):
            encoded = EncodedPrompt(self._raw(prompt, True, context, owner))
        elif isinstance(prompt, Conversation):
            encoded = self._chat(prompt, context, owner)
        else:
            self._check_ids(prompt)
            encoded = EncodedPrompt(list(prompt))
        if answered and not encoded.ids:
            raise UsageError("the prompt is empty", "say something")
        if answered and context is not None and len(encoded.ids) >= context:
            raise ContextExceeded(len(encoded.ids), context)
        return encoded

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a raw text, in which the names of special tokens become these tokens.

        ``special`` adds the tokens that the model wants around a text, such as BOS, like mlx-lm's ``generate``: not if
        the text already begins with BOS.

        Raises:
            UsageError: the text is not Unicode, or too large.
            ModelError: the tokenizer fails, or exceeds its limits.
        """
        check_prompt(text)
        return self._raw(text, special, None, "")

    def decode(self, ids: Sequence[int], owner: str = "") -> str:
        """The text of token ids, special tokens included, as the tokenizers library decodes it.

        Raises:
            UsageError: an id is no token of the model.
            ModelError: the tokenizer fails, or exceeds its limits.
        """
        self._check_ids(ids)
        return self._client_for(len(ids)).decode(ids, owner) if ids else ""

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one token's text, which may be a part of a character; empty for an id without a token.

        Exact for byte-level tokenizers and tokenizers with a token per byte; the UTF-8 of the token's text for others.
        """
        return self.detokenizer().only(token)

    def detokenizer(self) -> Detokenizer:
        """A detokenizer for a new sequence that continues a text: nothing is trimmed from its beginning."""
        return self._tokens.detokenizer(self._tokens.texts)

    def vocabulary(self) -> dict[str, int]:
        """The id of each token by its text."""
        return {text: token for token, text in self._tokens.texts.items()}

    def vocabulary_digest(self) -> str:
        """A digest of the vocabulary: the same for two tokenizers whose tokens have the same texts and ids."""
        return hashlib.sha256(json.dumps(sorted(self._tokens.texts.items())).encode()).hexdigest()

    def to_json(self) -> str:
        """The tokenizer as a ``tokenizer.json`` of the tokenizers library, without padding and truncation."""
        definition: str = self._facts["definition"]
        return definition

    def start(self) -> None:
        """Start the process in the background, so that it is ready for the first text."""
        self._client.start()

    def close(self) -> None:
        """End the processes of the tokenizer; another call starts them again."""
        self._client.close()
        self._long_client.close()

    def _raw(self, text: str, special: bool, context: int | None, owner: str) -> list[int]:
        bos = self._facts["bos"]
        self._check_length(text, context)
        add = special and (bos is None or not text.startswith(bos))
        return self._client_for(len(text)).encode(text, add, owner)

    def _chat(self, conversation: Conversation, context: int | None, owner: str) -> EncodedPrompt:
        template = self._facts["tool_template" if conversation.tools else "template"]
        if template is None:
            raise ModelError(
                f"{self.name} has no chat template: it only continues text",
                "give the text as it is with --raw, or use an Instruct model",
            )
        # As in mlx-lm, models that can think do, unless the conversation says otherwise.
        variables = {"enable_thinking": bool(self.thinking_tokens), **conversation.variables}
        conversation = replace(conversation, variables=variables)
        size = characters_of(conversation)
        text, content = self._client_for(size).render(template, conversation, self._facts["special"], owner, size)
        self._check_length(text, context)
        opening = text[content[-1][1] :] if content else text
        return EncodedPrompt(self._client_for(len(text)).encode_chat(text, content, owner), opening)

    def _client_for(self, size: int) -> TextClient:
        """The process for a text of ``size`` characters, or so many ids."""
        return self._client if size < _LONG else self._long_client

    def _check_ids(self, ids: Sequence[int]) -> None:
        texts = self._tokens.texts
        for token in ids:
            if type(token) is not int or token not in texts:
                raise UsageError(f"{token!r:.40} is no token of {self.name}, which has ids up to {max(texts)}")

    def _check_certainly_fits(self, prompt: Prompt, context: int) -> None:
        """Refuse a prompt with more text or ids than ``context`` tokens can hold, by its mere size."""
        if isinstance(prompt, str):
            least = len(prompt) // self._tokens.longest
        elif isinstance(prompt, Conversation):
            least = rendered_characters_of(prompt) // self._tokens.longest
        else:
            least = len(prompt)
        if least > context:
            raise ContextExceeded(least, context, at_least=isinstance(prompt, str | Conversation))

    def _check_length(self, text: str, context: int | None) -> None:
        """Refuse a text that cannot fit ``context`` tokens by the bound of this tokenizer.

        Raises:
            ContextExceeded: the text has more tokens.
        """
        bound = self._tokens.bound
        if context is None or bound is None or len(text) < context:
            return
        least = bound.least_tokens(text)
        if least >= context:
            raise ContextExceeded(least, context, at_least=True)


@dataclass(frozen=True)
class _Tokens:
    """The tokens of a tokenizer, by its definition."""

    texts: dict[int, str]
    """The text of each token by its id."""
    control: dict[str, int]
    """The id of each control token by its name."""
    detokenizer: Callable[[Mapping[int, str]], Detokenizer]
    bound: TokenBound | None
    longest: int
    """Largest number of characters that one token stands for."""

    @classmethod
    def of(cls, name: str, definition: Mapping[str, Any]) -> _Tokens:
        """The tokens of the tokenizer ``name`` by a parsed ``tokenizer.json``.

        Raises:
            ModelError: the kind of decoder is not supported, or a token is absurdly long.
        """
        try:
            detokenizer = detokenizer_factory(definition["decoder"])
        except ModelError as error:
            raise ModelError(f"{name} cannot answer: {error}", error.hint) from error
        vocabulary, added = definition["model"]["vocab"], definition["added_tokens"]
        if isinstance(vocabulary, dict):
            texts = {token: text for text, token in vocabulary.items()}
        else:  # a list, whose indices are the ids
            texts = {token: text for token, (text, _) in enumerate(vocabulary) if not text.startswith(FILLER)}
        texts |= {one["id"]: one["content"] for one in added}
        longest = max(map(len, texts.values()))
        if longest > _MAX_TOKEN_CHARACTERS:
            raise ModelError(
                f"{name} cannot answer: a token of its tokenizer has {longest} characters",
                "use another model, or one of `edgepp models list`",
            )
        control = {one["content"]: one["id"] for one in added if is_control(one["content"], one["special"])}
        return cls(texts, control, detokenizer, TokenBound.of(definition), characters_per_token(definition))
