"""Questions, answers and times as JSON objects, and back: what comes from the network is checked field by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias, get_args

from edgepp.engine.request import (
    MAX_BIASES,
    Constraint,
    FinishReason,
    GenerateOptions,
    SamplingOptions,
    StageTimes,
    Timing,
)
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampled
from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.layers import LayerRange

MAX_STAGES = 1024
"""Stages of one pipeline, at most."""

Prompt: TypeAlias = str | Sequence[Mapping[str, str]]
"""A raw text, or a conversation of ``{"role", "content"}``."""


def encode_question(prompt: Prompt, options: GenerateOptions) -> dict[str, Any]:
    """What ``Ask`` carries."""
    what: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"messages": [dict(m) for m in prompt]}
    return what | {"options": asdict(options)}


def decode_question(form: Mapping[str, Any]) -> tuple[str | list[dict[str, str]], GenerateOptions]:
    """The prompt and the options of an ``Ask``.

    Raises:
        RemoteProtocolError: the form is not one.
        UsageError: an option is out of bounds.
    """
    options = form.get("options")
    if not isinstance(options, dict) or not isinstance(options.get("sampling"), dict):
        raise RemoteProtocolError("a question without options")
    try:
        sampling = dict(options["sampling"])
        bias = tuple(_pair(one) for one in _list(sampling.pop("logit_bias"), MAX_BIASES))
        generate = GenerateOptions(
            max_tokens=_whole(options["max_tokens"]),
            stop=tuple(_text(one) for one in _list(options["stop"], 16)),
            ignore_eos=options["ignore_eos"] is True,
            sampling=SamplingOptions(**_numbers(sampling), logit_bias=bias),
            constraint=_constraint(options["constraint"]),
        )
    except (KeyError, TypeError) as error:
        raise RemoteProtocolError(f"a question with malformed options: {error}") from error
    return _prompt(form), generate


def _constraint(form: Any) -> Constraint | None:
    if form is None:
        return None
    if not isinstance(form, dict) or set(form) != {"kind", "text"}:
        raise RemoteProtocolError("a constraint has a kind and a text")
    return Constraint(form["kind"], _text(form["text"]))


def _prompt(form: Mapping[str, Any]) -> str | list[dict[str, str]]:
    if "prompt" in form:
        return _text(form["prompt"])
    messages = _list(form.get("messages"), 10_000)
    if not messages:
        raise UsageError("the conversation is empty", "say something")
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise RemoteProtocolError("a message of a conversation has a role and a content, both text")
    return [{"role": _text(message["role"]), "content": _text(message["content"])} for message in messages]


_DRAWING = ("temperature", "top_p", "top_k", "repetition_penalty")


def encode_sampling(sampling: SamplingOptions) -> dict[str, float]:
    """What a cluster's state says of how its model wants tokens drawn."""
    return {name: getattr(sampling, name) for name in _DRAWING}


def decode_sampling(form: Any) -> SamplingOptions:
    """How a cluster's model wants its tokens drawn.

    Raises:
        RemoteProtocolError: the form is not one.
    """
    if not isinstance(form, dict) or set(form) != set(_DRAWING):
        raise RemoteProtocolError("a cluster that does not say how its model wants tokens drawn")
    try:
        return SamplingOptions(**_numbers(form))
    except UsageError as error:
        raise RemoteProtocolError(f"a cluster's model wants its tokens drawn in no possible way: {error}") from error


@dataclass(frozen=True)
class AnswerSummary:
    """How an answer ended, and what it took."""

    finish_reason: FinishReason
    prompt_tokens: int
    timing: Timing
    stages: tuple[StageInfo, ...]
    sampled: tuple[Sampled, ...] = ()
    """One for each token, where log-probabilities were asked for."""
    spelled: Mapping[int, str] = field(default_factory=dict)
    """The text of each token that ``sampled`` names."""


def encode_summary(outcome: AnswerSummary) -> dict[str, Any]:
    """What ``Answered`` carries; times are seconds on the coordinator's clock."""
    stages = [asdict(stage) | {"layers": [stage.layers.start, stage.layers.stop]} for stage in outcome.stages]
    return {
        "finish_reason": outcome.finish_reason,
        "prompt_tokens": outcome.prompt_tokens,
        "timing": asdict(outcome.timing),
        "stages": stages,
        "sampled": outcome.sampled,
        "spelled": list(outcome.spelled.items()),
    }


def decode_summary(form: Mapping[str, Any]) -> AnswerSummary:
    """The outcome that ``Answered`` carries.

    Raises:
        RemoteProtocolError: the form is not one.
    """
    try:
        taken = dict(form["timing"])
        times = [StageTimes(**_floats(one)) for one in _list(taken.pop("stages"), MAX_STAGES)]
        counts = {name: _whole(taken.pop(name)) for name in ("tokens", "reused", "guessed", "right")}
        stages = read_stages(form)
        if form["finish_reason"] not in get_args(FinishReason) or len(times) != len(stages):
            raise RemoteProtocolError("an answer that ended in no known way")
        prompt_tokens = _whole(form["prompt_tokens"])
        sampled = tuple(_sampled(one) for one in _list(form["sampled"], 1 << 20))
        spelled = {_whole(token): _text(text) for token, text in _list(form["spelled"], 1 << 20)}
        seconds: dict[str, Any] = {**_floats(taken), **counts}
        timing = Timing(**seconds, stages=times)
        return AnswerSummary(form["finish_reason"], prompt_tokens, timing, stages, sampled, spelled)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise RemoteProtocolError(f"an answer's outcome is malformed: {error}") from error


def _sampled(form: Any) -> Sampled:
    token, logprob, top = form
    return Sampled(_whole(token), float(logprob), tuple((_whole(one), float(value)) for one, value in _list(top, 20)))


def read_stages(form: Mapping[str, Any]) -> tuple[StageInfo, ...]:
    """The stages that an answer's outcome or a cluster's state names; a number that is not known yet is 0.

    Raises:
        RemoteProtocolError: the form names none, or one of them is malformed.
    """
    try:
        return tuple(_stage(stage) for stage in _list(form.get("stages"), MAX_STAGES))
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise RemoteProtocolError(f"a stage is malformed: {error}") from error


def _stage(form: Mapping[str, Any]) -> StageInfo:
    start, stop = form["layers"]
    return StageInfo(
        index=_whole(form["index"]),
        layers=LayerRange(_whole(start), _whole(stop)),
        node=_text(form["node"])[:200],
        address=_text(form["address"])[:200],
        pid=_whole(form["pid"] or 0),
        backend=_text(form["backend"])[:200],
        device=_text(form["device"])[:200],
        chunk=_whole(form.get("chunk", 0)),
        context=_whole(form.get("context", 0)),
        prefill_s=float(form.get("prefill_s", 0.0)),
        decode_s=float(form["decode_s"] or 0.0),
        hop_s=float(form.get("hop_s", 0.0)),
        bytes_per_s=float(form.get("bytes_per_s", 0.0)),
        rewinds=bool(form.get("rewinds", True)),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RemoteProtocolError(f"a {type(value).__name__} where text is expected")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise RemoteProtocolError(f"{value!r:.40} where a whole number is expected")
    return value


def _list(value: Any, longest: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > longest:
        raise RemoteProtocolError(f"a list of at most {longest} is expected")
    return value


def _pair(value: Any) -> tuple[int, float]:
    if not isinstance(value, list) or len(value) != 2 or type(value[1]) not in (int, float):
        raise RemoteProtocolError(f"{value!r:.40} where a token id and its bias are expected")
    return _whole(value[0]), value[1]


def _floats(form: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in form.items()}


def _numbers(form: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in form.items():
        if type(value) not in (int, float) and not (name in ("seed", "logprobs") and value is None):
            raise RemoteProtocolError(f"{name} is {value!r:.40}, not a number")
    return dict(form)
