"""Options of a request of Ollama's API, as ``GenerateOptions`` and variables of the chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.errors import UsageError
from edgepp.http_api.failures import RequestError
from edgepp.http_api.model_service import ServedModel
from edgepp.tool_calls.schemas import answer_constraint

Format: TypeAlias = dict[str, Any] | str
"""A JSON schema, ``json`` for any object, or empty for text."""
Think: TypeAlias = bool | str
KeepAlive: TypeAlias = float | str

_DEFAULTS = {"temperature": 0.8, "top_k": 40.0, "top_p": 0.9}
"""Ollama's default of each option for which the makers of the model recommend no value."""
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}
_DURATION = re.compile(
    r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:ns|us|µs|ms|s|m|h|d)?(?:(?:\d+(?:\.\d+)?)(?:ns|us|µs|ms|s|m|h))*"
)


def generate_options(
    model: ServedModel,
    options: Mapping[str, Any] | None,
    form: Format | None,
    logprobs: bool | None,
    top_logprobs: int | None,
) -> GenerateOptions:
    """The options of a request for ``model``; unknown options and options of loading are ignored.

    Raises:
        RequestError: an option has the wrong type or is out of range.
    """
    given = options or {}
    reported = (top_logprobs or 0) if logprobs else None
    limit = _whole(given, "num_predict", -1)
    return GenerateOptions(
        max_tokens=min(limit, model.context) if limit > 0 else model.context,
        stop=_stop(given),
        sampling=_sampling({**_DEFAULTS, **model.sampling}, given, reported),
        constraint=_constraint(form),
    )


def _sampling(defaults: Mapping[str, float], given: Mapping[str, Any], logprobs: int | None) -> SamplingOptions:
    """Sampling as given, or by default; Open WebUI sends its frequency penalty, 0, as ``repeat_penalty``."""
    seed = _whole(given, "seed", -1)
    try:
        return SamplingOptions(
            temperature=_number(given, "temperature", defaults["temperature"]),
            repetition_penalty=_number(given, "repeat_penalty", defaults.get("repetition_penalty", 1.0)) or 1.0,
            top_p=_number(given, "top_p", defaults["top_p"]),
            min_p=_number(given, "min_p", 0.0),
            top_k=max(0, _whole(given, "top_k", defaults["top_k"])),
            seed=seed if seed >= 0 else None,
            frequency_penalty=_number(given, "frequency_penalty", 0.0),
            presence_penalty=_number(given, "presence_penalty", 0.0),
            logprobs=logprobs,
        )
    except UsageError as error:
        sentence = str(error).replace("repetition_penalty", "repeat_penalty").replace("logprobs", "top_logprobs")
        raise RequestError("invalid_request", sentence) from error


def _number(given: Mapping[str, Any], name: str, default: float) -> float:
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, "a number", value)
    return value


def _whole(given: Mapping[str, Any], name: str, default: float) -> int:
    return int(_number(given, name, default))  # clients send 40.0 for 40


def _stop(given: Mapping[str, Any]) -> tuple[str, ...]:
    value = given.get("stop")
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _wrong("stop", "a list of texts", value)
    return tuple(text for text in texts if text)


def _wrong(name: str, kind: str, value: Any) -> RequestError:
    message = f"options.{name} must be {kind}, not {value!r:.40}"
    return RequestError("invalid_request", message, parameter=f"options.{name}")


def _constraint(form: Format | None) -> Constraint | None:
    if form is None or form == "":
        return None
    if form in ("json", {}):
        return Constraint("json")
    if isinstance(form, str):
        message = f"format is 'json' or a JSON schema, not {form!r:.40}"
        raise RequestError("invalid_request", message, parameter="format")
    return answer_constraint(form, strict=False)


def think_variables(model: ServedModel, name: str, think: Think | None) -> dict[str, Any]:
    """Variables of the chat template for ``think``: on, off, or an effort.

    Raises:
        RequestError: the effort has no such level, or the model, which the client calls ``name``, cannot think.
    """
    if isinstance(think, str) and think not in _EFFORTS:
        levels = ", ".join(_EFFORTS)
        raise RequestError("invalid_request", f"think is true, false or {levels}, not {think!r:.40}", parameter="think")
    if not model.thinks:
        if think:
            raise RequestError("invalid_request", f'"{name}" does not support thinking', parameter="think")
        return {}
    if think is None:
        return {}
    effort = {"reasoning_effort": _EFFORTS[think]} if isinstance(think, str) else {}
    return {"enable_thinking": bool(think), **effort}


def is_zero(keep_alive: KeepAlive | None) -> bool:
    """Whether ``keep_alive``, seconds or a text like ``5m``, asks to unload the model at once.

    Raises:
        RequestError: the text is no duration.
    """
    if keep_alive is None:
        return False
    if isinstance(keep_alive, str):
        if not _DURATION.fullmatch(keep_alive.strip()):
            message = f"keep_alive is a number of seconds or a duration like '5m', not {keep_alive!r:.40}"
            raise RequestError("invalid_request", message, parameter="keep_alive")
        return not any(digit in keep_alive for digit in "123456789")
    return keep_alive == 0
