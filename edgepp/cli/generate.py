"""The options of an answer, from what was given on a command line and what the model's makers recommend."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

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
    schema: BinaryIO | None,
    regex: str | None,
    grammar: BinaryIO | None,
    **_: Any,
) -> tuple[GenerateOptions, dict[str, Any]]:
    """What was asked for, and by name what of it the model's makers would say otherwise."""
    from edgepp.engine.request import GenerateOptions, SamplingOptions
    from edgepp.ui.chat import unicode_text

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
    for text in stop:
        unicode_text(text, "--stop")
    return GenerateOptions(max_tokens, stop, ignore_eos, sampling, _constraint(schema, regex, grammar)), given


def drawn(asked: SamplingOptions, models: SamplingOptions, given: dict[str, Any], *, exact: bool) -> SamplingOptions:
    """What was ``asked`` for, and where nothing was ``given`` what the model's makers recommend.

    A temperature of 0, and ``exact`` arithmetic without a temperature or seed, take the likeliest token as it is.
    """
    if given.get("temperature") == 0 or (exact and "temperature" not in given and asked.seed is None):
        return asked
    names = ("temperature", "top_p", "top_k", "repetition_penalty")
    return replace(asked, **{name: getattr(models, name) for name in names if name not in given})


def _constraint(schema: BinaryIO | None, regex: str | None, grammar: BinaryIO | None) -> Constraint | None:
    from edgepp.engine.request import Constraint
    from edgepp.ui.chat import unicode_text

    given = [
        *([Constraint("json_schema", _utf8(schema, "--schema"))] if schema else []),
        *([Constraint("regex", unicode_text(regex, "--regex"))] if regex is not None else []),
        *([Constraint("grammar", _utf8(grammar, "--grammar"))] if grammar else []),
    ]
    if len(given) > 1:
        raise UsageError("--schema, --regex and --grammar exclude each other")
    return given[0] if given else None


def _utf8(file: BinaryIO, what: str) -> str:
    from edgepp.engine.request import MAX_CONSTRAINT_BYTES
    from edgepp.ui.chat import not_unicode

    raw = file.read(MAX_CONSTRAINT_BYTES + 1)
    try:
        return raw.decode(errors="strict" if len(raw) <= MAX_CONSTRAINT_BYTES else "replace")  # too long: refused later
    except UnicodeDecodeError as error:
        raise not_unicode(f"the file of {what}") from error
