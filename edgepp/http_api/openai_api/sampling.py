"""Options of OpenAI's completions as ``GenerateOptions``: sampling, stops, the length, and the form of the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.http_api.failures import RequestError
from edgepp.http_api.model_service import ServedModel
from edgepp.tool_calls.schemas import answer_constraint

MAX_CHOICES = 16
"""Answers to one prompt that a client may ask for at once."""

Count: TypeAlias = Annotated[int, Meta(ge=-1)]
"""A number of tokens of any size, which is cut to the number that fits."""
NumChoices: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
_TOKEN_ID = re.compile("[0-9]{1,18}")


class SchemaBody(msgspec.Struct):
    """A named JSON schema."""

    schema: dict[str, Any] | None = None
    strict: bool | None = None
    """Whether a schema that cannot be held in every part is refused; otherwise such parts are left out."""


class ResponseFormat(msgspec.Struct):
    """Form that the text of the answer must have; ``schema`` may stand at either depth, as in llama-server."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: SchemaBody | None = None
    schema: dict[str, Any] | None = None


class StreamOptions(msgspec.Struct):
    """Additions to the text of a stream."""

    include_usage: bool | None = None


class SamplingBody(msgspec.Struct, kw_only=True):
    """The fields that chat completions and legacy completions share; unknown fields are ignored."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    n: NumChoices | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    top_k: Count | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63))] | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage is True


def options_of(body: SamplingBody, model: ServedModel, max_tokens: int | None, logprobs: int | None) -> GenerateOptions:
    """The options of a body, with the recommendations of the model's makers where the body says nothing.

    Args:
        body: The decoded body.
        model: The served model.
        max_tokens: Tokens of the answer; None, 0 and -1 for as many as fit.
        logprobs: How many likeliest tokens to report, or None to report no log-probabilities.

    Raises:
        RequestError: an option cannot be followed.
        UsageError: an option is out of range.
    """
    return GenerateOptions(
        max_tokens=model.context if max_tokens in (None, 0, -1) else min(max_tokens or 1, model.context),
        stop=_stop(body.stop),
        ignore_eos=body.ignore_eos is True,
        sampling=_sampling(body, model.sampling, logprobs),
        constraint=constraint_of(body.response_format),
    )


def constraint_of(form: ResponseFormat | None) -> Constraint | None:
    """Constraint of the text by its form ``form``; None for free text.

    Raises:
        RequestError: there is no schema where one is wanted.
        UsageError: the schema is too large, or ``strict`` and cannot be held.
    """
    if form is None or form.type == "text":
        return None
    schema = form.json_schema.schema if form.json_schema is not None else form.schema
    if schema is not None:
        strict = form.json_schema is not None and form.json_schema.strict is True
        return answer_constraint(schema, strict)
    if form.type == "json_object":
        return Constraint("json")
    raise RequestError(
        "invalid_request",
        "response_format has no schema",
        "send json_schema.schema",
        parameter="response_format.json_schema.schema",
    )


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    given = [stop] if isinstance(stop, str) else stop or []
    return tuple(one for one in given if one)


def _sampling(body: SamplingBody, recommended: Mapping[str, float], logprobs: int | None) -> SamplingOptions:
    def chosen(name: str, otherwise: float) -> float:
        value: float | None = getattr(body, name)
        return recommended.get(name, otherwise) if value is None else value

    return SamplingOptions(
        temperature=chosen("temperature", 1.0),
        repetition_penalty=chosen("repetition_penalty", 1.0),
        top_p=chosen("top_p", 1.0),
        min_p=chosen("min_p", 0.0),
        top_k=max(0, int(chosen("top_k", 0))),
        seed=None if body.seed == -1 else body.seed,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=_biases(body.logit_bias or {}),
        logprobs=logprobs,
    )


def _biases(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    if not all(_TOKEN_ID.fullmatch(token) for token in given):
        raise RequestError(
            "invalid_request", "logit_bias names tokens by their ids, as strings of digits", parameter="logit_bias"
        )
    return tuple((int(token), bias) for token, bias in given.items())
