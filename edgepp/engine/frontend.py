"""The coordinator's own part of a model: its checkpoint, tokenizer and default sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from edgepp.engine.constrained_decoding import ConstraintCompiler, Matcher
from edgepp.engine.request import Constraint, SamplingOptions
from edgepp.model.config.generation import generation_defaults
from edgepp.model.fetch import fetch
from edgepp.model.text.tokenizer import Tokenizer
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.model_parts import ALL_PARTS, ModelParts

OnProgress: TypeAlias = Callable[[int, int, str], None]
"""Called during downloads and loads with the bytes done, the bytes in total, and what is being done."""


@dataclass(frozen=True)
class ModelFrontend:
    """A model's files and tokenizer, which outlive each pipeline of the model."""

    model: str
    path: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """The sampling options that the model's makers recommend."""

    @classmethod
    def open(cls, model: str, *, whole: bool, on_progress: OnProgress | None = None) -> ModelFrontend:
        """Open ``model``, after fetching what is missing of the ``whole`` model or of its embedding and head alone.

        Raises:
            ModelError: the model does not exist, or cannot be fetched now.
        """
        path = fetch(model, ALL_PARTS if whole else ModelParts(embedding_and_head=True), on_progress)
        draw = generation_defaults(path)
        sampling = SamplingOptions(draw.temperature, draw.repetition_penalty, draw.top_p, top_k=draw.top_k)
        return cls(model, path, Checkpoint.open(path), Tokenizer.load(path), sampling)

    @cached_property
    def _compiler(self) -> ConstraintCompiler:
        return ConstraintCompiler(self.tokenizer.to_json(), self.tokenizer.eos_ids)

    def compile(self, constraint: Constraint, owner: str = "") -> Matcher:
        """A matcher that holds one answer of ``owner`` to ``constraint``.

        Raises:
            UsageError: the constraint is invalid or too complex.
            Overloaded: many other constraints of the owner wait for their trial.
        """
        return self._compiler.compile(constraint, owner)
