"""The options of an answer, from what was given on a command line and what the model's makers recommend."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions


def generate_options(
    *,
    max_tokens: int,
    stop: tuple[str, ...],
    ignore_eos: bool,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float,
    repetition_penalty: float | None,
    frequency_penalty: float,
    presence_penalty: float,
    logprobs: int | None,
    seed: int | None,
    schema: str | None,
    regex: str | None,
    grammar: str | None,
    **_: Any,
) -> tuple[GenerateOptions, dict[str, Any]]:
    """What was asked for, and by name what of it the model's makers would say otherwise."""
    from edgepp.engine.request import GenerateOptions, SamplingOptions

    said = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "repetition_penalty": repetition_penalty}
    given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    sampling = SamplingOptions(
        min_p=min_p,
        seed=seed,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        logprobs=logprobs,
        **given,
    )
    return GenerateOptions(max_tokens, stop, ignore_eos, sampling, _constraint(schema, regex, grammar)), given


def drawn(asked: SamplingOptions, models: SamplingOptions, given: dict[str, Any], *, exact: bool) -> SamplingOptions:
    """What was ``asked`` for, and where nothing was ``given`` what the model's makers recommend.

    A temperature of 0, and ``exact`` arithmetic without a temperature or seed, take the likeliest token as it is.
    """
    if given.get("temperature") == 0 or (exact and "temperature" not in given and asked.seed is None):
        return asked
    names = ("temperature", "top_p", "top_k", "repetition_penalty")
    return replace(asked, **{name: getattr(models, name) for name in names if name not in given})


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
