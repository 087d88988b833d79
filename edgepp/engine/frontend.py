"""The coordinator's own part of a model: its settings, tokenizer and the place of its two ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from edgepp.engine.constraint import ConstraintCompiler, Matcher
from edgepp.engine.request import Constraint, SamplingOptions
from edgepp.model.config.generation import generation_defaults
from edgepp.model.fetch import fetch
from edgepp.model.text.tokenizer import Tokenizer
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.model_parts import ALL_PARTS, ModelParts

OnProgress: TypeAlias = Callable[[int, int, str], None]
"""Called with (done, total, what) bytes while something long goes on."""


@dataclass(frozen=True)
class ModelFrontend:
    """What outlives any one pipeline of a model."""

    model: str
    path: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """How the model's makers want its tokens drawn."""

    @classmethod
    def open(cls, model: str, *, whole: bool, on_progress: OnProgress | None = None) -> ModelFrontend:
        """Fetch what is missing: the ``whole`` model, or its ends alone.

        Raises:
            ModelError: there is no such model, or it cannot be fetched now.
        """
        path = fetch(model, ALL_PARTS if whole else ModelParts(embedding_and_head=True), on_progress)
        draw = generation_defaults(path)
        sampling = SamplingOptions(draw.temperature, draw.repetition_penalty, draw.top_p, top_k=draw.top_k)
        return cls(model, path, Checkpoint.open(path), Tokenizer.load(path), sampling)

    @cached_property
    def _compiler(self) -> ConstraintCompiler:
        return ConstraintCompiler(self.tokenizer.to_json(), self.tokenizer.eos_ids)

    def compile(self, constraint: Constraint) -> Matcher:
        """What holds an answer to ``constraint``.

        Raises:
            UsageError: what is wrong with the constraint.
        """
        return self._compiler.compile(constraint)
