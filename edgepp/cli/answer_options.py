"""Options of an answer: from the command line, else as the model recommends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions

_RECOMMENDED = ("temperature", "top_p", "top_k", "repetition_penalty")


@dataclass(frozen=True)
class GenerateArguments:
    """Options of `edgepp chat` about an answer; None where an option was not given.

    ``temperature``, ``top_p``, ``top_k`` and ``repetition_penalty`` then have the values that the model recommends;
    without ``seed`` each sampled answer differs, and without ``logprobs`` no probabilities are shown.
    """

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
    """Number of likeliest tokens to show beside each token."""
    seed: int | None = None
    schema: str | None = None
    """Text of a JSON schema."""
    regex: str | None = None
    grammar: str | None = None
    """Text of a Lark grammar."""

    @property
    def given(self) -> dict[str, Any]:
        """The given options, by name, among those for which a model recommends values."""
        return {name: value for name in _RECOMMENDED if (value := getattr(self, name)) is not None}

    def options(self) -> GenerateOptions:
        """Options for the engine, with the engine's defaults where no value was given.

        Raises:
            UsageError: an option is out of bounds, or two options exclude each other.
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


def with_recommended(
    asked: SamplingOptions, recommended: SamplingOptions, given: Mapping[str, Any], *, exact: bool
) -> SamplingOptions:
    """``asked``, with the values that the model recommends for the options that were not ``given``.

    Temperature 0, and ``exact`` arithmetic without a temperature or seed, always take the likeliest token: ``asked`` is
    returned unchanged.
    """
    if given.get("temperature") == 0 or (exact and "temperature" not in given and asked.seed is None):
        return asked
    return replace(asked, **{name: getattr(recommended, name) for name in _RECOMMENDED if name not in given})


def _constraint(schema: str | None, regex: str | None, grammar: str | None) -> Constraint | None:
    from edgepp.engine.request import Constraint

    given = [
        *([Constraint("json_schema", schema)] if schema is not None else []),
        *([Constraint("regex", regex)] if regex is not None else []),
        *([Constraint("grammar", grammar)] if grammar is not None else []),
    ]
    if len(given) > 1:
        raise UsageError("--schema, --regex and --grammar exclude each other", "give one of them")
    return given[0] if given else None
