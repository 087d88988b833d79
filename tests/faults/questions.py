"""Questions to a cluster, and the tokens that one process gives to them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.model.text.conversation import Conversation, Prompt
from edgepp.python_api.question import choice_options

MODEL = "smollm2-135m"
Question = tuple[Prompt, GenerateOptions]
FOUR = ("plain", "schema", "seeded", "choice 1", "choice 2")
"""Four streams, of which one has two choices."""


_TOKENS = 48
_DIGITS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 16, "maxItems": 16}
_SCHEMA = json.dumps(
    {"type": "object", "properties": {"digits": _DIGITS}, "required": ["digits"], "additionalProperties": False}
)
_LONG = " ".join(f"Ship {n} sails to port {7 * n % 50}." for n in range(60)) + " Which ship comes first?"


def _asked() -> dict[str, Question]:
    seeded = GenerateOptions(_TOKENS, ignore_eos=True, sampling=SamplingOptions(temperature=0.8, top_p=0.95, seed=5))
    first, second = choice_options(2, GenerateOptions(_TOKENS, ignore_eos=True, sampling=SamplingOptions(0.9, seed=8)))
    birds = Conversation.of("Why do birds sing?")
    return {
        "plain": (Conversation.of("Name three colours."), GenerateOptions(_TOKENS, ignore_eos=True)),
        "schema": (
            Conversation.of("Write digits."),
            GenerateOptions(200, constraint=Constraint("json_schema", _SCHEMA)),
        ),
        "seeded": (Conversation.of("Tell me about the sea."), seeded),
        "choice 1": (birds, first),
        "choice 2": (birds, second),
        "long": (Conversation.of(_LONG), GenerateOptions(12, ignore_eos=True)),
    }


@dataclass(frozen=True)
class Questions:
    """Questions by name."""

    asked: dict[str, Question]
    expected: dict[str, list[int]]
    """The tokens of one process."""
    prompt_tokens: dict[str, int]

    @classmethod
    def put_to(cls, model: str | Path, **more: Question) -> Questions:
        """All questions and ``more``, with the tokens that one process with this model gives."""
        asked, expected, prompt_tokens = _asked() | more, {}, {}
        with Pipeline(PipelineOptions(str(model), threads=1, exact=True)) as pipeline:
            for name, (prompt, options) in asked.items():
                answer = pipeline.ask(prompt, options)
                for _ in answer:
                    continue
                expected[name], prompt_tokens[name] = answer.token_ids, answer.prompt_tokens
        return cls(asked, expected, prompt_tokens)
