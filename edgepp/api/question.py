"""What can be asked: a prompt as it is sent, and the options of several answers to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from edgepp.engine.request import GenerateOptions
from edgepp.errors import UsageError

Prompt: TypeAlias = str | Sequence[Mapping[str, str]]
"""A user's question, or a conversation of ``{"role", "content"}``; both go through the model's chat template."""

MOST_CHOICES = 16
"""Answers to one prompt at a time."""


def worded(prompt: Prompt, *, raw: bool) -> Prompt:
    """What is sent: a text as it stands, or a conversation."""
    if isinstance(prompt, str):
        return prompt if raw else [{"role": "user", "content": prompt}]
    if raw:
        raise UsageError("a conversation cannot be raw: it needs the chat template", "give one text, or leave out raw")
    return prompt


def each(n: int, options: GenerateOptions | None) -> list[GenerateOptions]:
    """The options of ``n`` answers to one prompt."""
    if not 1 <= n <= MOST_CHOICES:
        raise UsageError(f"a prompt gets 1 to {MOST_CHOICES} choices, not {n}", "ask several times for more")
    options = options or GenerateOptions()
    sampling = options.sampling
    if sampling.seed is None:
        return [options] * n
    return [replace(options, sampling=replace(sampling, seed=sampling.seed + i)) for i in range(n)]
