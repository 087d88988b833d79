"""The options of an answer, from what was given on a command line and what the model's makers recommend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions

_OF_THE_MAKERS = ("temperature", "top_p", "top_k", "repetition_penalty")


@dataclass(frozen=True)
class GenerateArguments:
    """The options of `edgepp chat` that say what an answer is like; None where the model's makers or nobody decides."""

    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: int | None = None
    seed: int | None = None
    schema: str | None = None
    regex: str | None = None
    grammar: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What was given, by name, of the options that the model's makers recommend."""
        return {name: value for name in _OF_THE_MAKERS if (value := getattr(self, name)) is not None}

    def options(self) -> GenerateOptions:
        """The options, with the engine's defaults in place of what the model's makers recommend.

        Raises:
            UsageError: an option is out of bounds, or two of them exclude each other.
        """
        from edgepp.engine.request import GenerateOptions, SamplingOptions

        sampling = SamplingOptions(
            min_p=self.min_p,
            seed=self.seed,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logprobs=self.logprobs,
            **self.given,
        )
        constraint = _constraint(self.schema, self.regex, self.grammar)
        return GenerateOptions(self.max_tokens, self.stop, self.ignore_eos, sampling, constraint)


def drawn(asked: SamplingOptions, models: SamplingOptions, given: Mapping[str, Any], *, exact: bool) -> SamplingOptions:
    """What was ``asked`` for, and where nothing was ``given`` what the model's makers recommend.

    A temperature of 0, and ``exact`` arithmetic without a temperature or seed, take the likeliest token as it is.
    """
    if given.get("temperature") == 0 or (exact and "temperature" not in given and asked.seed is None):
        return asked
    return replace(asked, **{name: getattr(models, name) for name in _OF_THE_MAKERS if name not in given})


def _constraint(schema: str | None, regex: str | None, grammar: str | None) -> Constraint | None:
    from edgepp.engine.request import Constraint

    given = [
        *([Constraint("json_schema", schema)] if schema is not None else []),
        *([Constraint("regex", regex)] if regex is not None else []),
        *([Constraint("grammar", grammar)] if grammar is not None else []),
    ]
    if len(given) > 1:
        raise UsageError("--schema, --regex and --grammar exclude each other")
    return given[0] if given else None
