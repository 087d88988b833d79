"""Questions to a cluster, and the tokens that one process gives to them."""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.engine.request import GenerateOptions
from edgepp.model.text.conversation import Prompt

MODEL = "smollm2-135m"
Question = tuple[Prompt, GenerateOptions]
FOUR = ("plain", "schema", "seeded", "choice 1", "choice 2")
"""Four streams, of which one has two choices."""


@dataclass(frozen=True)
class Questions:
    """Questions by name."""

    asked: dict[str, Question]
    expected: dict[str, list[int]]
    """The tokens of one process."""
