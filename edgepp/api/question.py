"""The prompt of an answer, and the options of several answers to one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from edgepp.engine.request import GenerateOptions
from edgepp.errors import UsageError

Prompt: TypeAlias = str | Sequence[Mapping[str, str]]
"""A question, or a conversation as ``{"role", "content"}`` per message; the model's chat template formats both."""

MAX_CHOICES = 16
"""Answers to one prompt at a time."""


def conversation_or_raw(prompt: Prompt, *, raw: bool) -> Prompt:
    """The prompt as it is sent: a conversation, or with ``raw`` the text unchanged.

    Raises:
        UsageError: a conversation cannot be raw.
    """
    if isinstance(prompt, str):
        return prompt if raw else [{"role": "user", "content": prompt}]
    if raw:
        raise UsageError("a conversation cannot be raw: it needs the chat template", "give one text, or leave out raw")
    return prompt


def choice_options(n: int, options: GenerateOptions | None) -> list[GenerateOptions]:
    """The options of ``n`` answers to one prompt; a seed increases by one per answer.

    Raises:
        UsageError: ``n`` is not from 1 to ``MAX_CHOICES``.
    """
    if not 1 <= n <= MAX_CHOICES:
        raise UsageError(f"{n} choices cannot be computed at once", f"ask for 1 to {MAX_CHOICES} choices at a time")
    options = options or GenerateOptions()
    sampling = options.sampling
    if sampling.seed is None:
        return [options] * n
    return [replace(options, sampling=replace(sampling, seed=sampling.seed + i)) for i in range(n)]
