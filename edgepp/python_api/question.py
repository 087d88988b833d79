"""The prompt of an answer, and the options of several answers to one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, cast

from edgepp.engine.request import GenerateOptions
from edgepp.errors import UsageError
from edgepp.model.text.conversation import Conversation, Message, Prompt

Question: TypeAlias = Prompt | Sequence[Message] | Sequence[int]
"""A question; a conversation, or its messages as ``{"role", "content"}`` each; or token ids, sent unchanged.

The model's chat template formats questions and conversations.
"""

MAX_CHOICES = 16
"""Answers to one prompt at a time."""


def conversation_or_raw(question: Question, *, raw: bool) -> Prompt:
    """The prompt as it is sent: a conversation, token ids, or with ``raw`` the text unchanged.

    Raises:
        UsageError: a conversation cannot be raw, or ``question`` is none of these.
    """
    if isinstance(question, str):
        return question if raw else Conversation.of(question)
    if (
        isinstance(question, Sequence)
        and not isinstance(question, bytes)
        and question
        and all(isinstance(one, int) for one in question)
    ):
        return tuple(cast("Sequence[int]", question))
    if raw:
        raise UsageError("a conversation cannot be raw: it needs the chat template", "give one text, or leave out raw")
    if isinstance(question, Conversation):
        return question
    if not isinstance(question, Sequence) or not all(isinstance(one, Mapping) for one in question):
        raise UsageError(f"a prompt is a text, messages or token ids, not {question!r:.40}")
    return Conversation(tuple(cast("Sequence[Message]", question)))


def choice_options(n: int, options: GenerateOptions | None) -> list[GenerateOptions]:
    """The options of ``n`` answers to one prompt; a seed increases by one per answer.

    Raises:
        UsageError: ``n`` is not from 1 to ``MAX_CHOICES``.
    """
    if type(n) is not int or not 1 <= n <= MAX_CHOICES:
        raise UsageError(f"{n} choices cannot be computed at once", f"ask for 1 to {MAX_CHOICES} choices at a time")
    options = options or GenerateOptions()
    sampling = options.sampling
    if sampling.seed is None:
        return [options] * n
    return [replace(options, sampling=replace(sampling, seed=sampling.seed + i)) for i in range(n)]
