"""Questions and answer summaries as JSON objects, and back. Objects from the network are checked field by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from edgepp.engine.request import MAX_BIASES, Constraint, FinishReason, GenerateOptions, SamplingOptions
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampled
from edgepp.engine.timing import Recovery, RecoveryKind, StageTimes, Timing
from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.text.conversation import Conversation, Prompt
from edgepp.model.text.prompt_check import MAX_MESSAGES, MAX_TOOLS, check_prompt

MAX_IDS = 1 << 20
"""Token ids of a prompt."""
MAX_STAGES = 1024
"""The longest list of stages that is accepted."""


def encode_question(prompt: Prompt, options: GenerateOptions) -> dict[str, Any]:
    """The JSON object of ``Ask``."""
    what: dict[str, Any]
    if isinstance(prompt, str):
        what = {"prompt": prompt}
    elif isinstance(prompt, Conversation):
        what = prompt.to_json()
    else:
        what = {"ids": prompt}
    return what | {"options": asdict(options)}


def decode_question(fields: Mapping[str, Any]) -> tuple[Prompt, GenerateOptions]:
    """The prompt and the options of an ``Ask``.

    Raises:
        RemoteProtocolError: the object is malformed.
        UsageError: an option is out of bounds, or a message or tool cannot be used.
    """
    options = fields.get("options")
    if not isinstance(options, dict) or not isinstance(options.get("sampling"), dict):
        raise RemoteProtocolError("a question without options")
    try:
        sampling = dict(options["sampling"])
        bias = tuple(_pair(one) for one in _list(sampling.pop("logit_bias"), MAX_BIASES))
        generate = GenerateOptions(
            max_tokens=_unsigned(options["max_tokens"]),
            stop=tuple(_string(one) for one in _list(options["stop"], 16)),
            ignore_eos=options["ignore_eos"] is True,
            sampling=SamplingOptions(**_numbers(sampling), logit_bias=bias),
            constraint=_constraint(options["constraint"]),
            prompt_logprobs=None if (wanted := options["prompt_logprobs"]) is None else _unsigned(wanted),
        )
    except (KeyError, TypeError) as error:
        raise RemoteProtocolError(f"a question with malformed options: {error}") from error
    return _prompt(fields), generate


def _constraint(fields: Any) -> Constraint | None:
    if fields is None:
        return None
    if not isinstance(fields, dict) or set(fields) != {"kind", "text"}:
        raise RemoteProtocolError("a constraint has a kind and a text")
    return Constraint(fields["kind"], _string(fields["text"]))


def _prompt(fields: Mapping[str, Any]) -> Prompt:
    prompt: Prompt
    match {name: value for name, value in fields.items() if name != "options"}:
        case {"prompt": text, **others} if not others:
            prompt = _string(text)
        case {"ids": ids, **others} if not others:
            prompt = tuple(_unsigned(token) for token in _list(ids, MAX_IDS))
        case {"messages": messages, "tools": tools, "variables": variables, "continues": bool(continues), **others} if (
            not others
        ):
            prompt = Conversation(_list(messages, MAX_MESSAGES), _list(tools, MAX_TOOLS), variables, continues)
        case _:
            raise RemoteProtocolError("a question is a prompt, ids, or messages with tools, variables and continues")
    check_prompt(prompt)
    return prompt


_SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "repetition_penalty")


def encode_sampling(sampling: SamplingOptions) -> dict[str, float]:
    """The recommended sampling options of a model, as the cluster's state shows them."""
    return {name: getattr(sampling, name) for name in _SAMPLING_FIELDS}


def decode_sampling(fields: Any) -> SamplingOptions:
    """The recommended sampling options in a cluster's state.

    Raises:
        RemoteProtocolError: the object is malformed.
    """
    if not isinstance(fields, dict) or set(fields) != set(_SAMPLING_FIELDS):
        raise RemoteProtocolError("a cluster state without sampling options")
    try:
        return SamplingOptions(**_numbers(fields))
    except UsageError as error:
        raise RemoteProtocolError(f"a cluster state with impossible sampling options: {error}") from error


@dataclass(frozen=True)
class AnswerSummary:
    """How an answer ended, with its timing."""

    finish_reason: FinishReason
    prompt_tokens: int
    timing: Timing
    stages: tuple[StageInfo, ...]
    sampled: tuple[Sampled, ...] = ()
    """One per token where log-probabilities were requested, else empty."""
    spelled: Mapping[int, str] = field(default_factory=dict)
    """The text of each token that ``sampled`` and ``prompt_sampled`` name."""
    stop_string: str | None = None
    """The stop string that ended the text, if one did."""
    request_id: str = ""
    """The name of the request in logs and traces."""
    prompt_sampled: tuple[Sampled, ...] = ()
    """One per token of the prompt but the first, where their log-probabilities were requested."""


def encode_summary(summary: AnswerSummary) -> dict[str, Any]:
    """The JSON object of ``Answered``; times are seconds on the coordinator's clock."""
    stages = [asdict(stage) | {"layers": [stage.layers.start, stage.layers.stop]} for stage in summary.stages]
    return {
        "finish_reason": summary.finish_reason,
        "prompt_tokens": summary.prompt_tokens,
        "timing": asdict(summary.timing),
        "stages": stages,
        "sampled": summary.sampled,
        "spelled": list(summary.spelled.items()),
        "stop_string": summary.stop_string,
        "request_id": summary.request_id,
        "prompt_sampled": summary.prompt_sampled,
    }


def decode_summary(fields: Mapping[str, Any]) -> AnswerSummary:
    """The answer summary of an ``Answered``.

    Raises:
        RemoteProtocolError: the object is malformed.
    """
    try:
        timing_fields = dict(_object(fields["timing"]))
        times = [StageTimes(**_floats(one)) for one in _list(timing_fields.pop("stages"), MAX_STAGES)]
        recoveries = [_recovery(one) for one in _list(timing_fields.pop("recoveries"), MAX_STAGES)]
        counts = {name: _unsigned(timing_fields.pop(name)) for name in ("tokens", "reused", "guessed", "right")}
        stages = decode_stages(fields)
        if fields["finish_reason"] not in get_args(FinishReason) or len(times) != len(stages):
            raise RemoteProtocolError("an answer that ended in no known way")
        prompt_tokens = _unsigned(fields["prompt_tokens"])
        sampled = tuple(_sampled(one) for one in _list(fields["sampled"], 1 << 20))
        spelled = {_unsigned(token): _string(text) for token, text in _list(fields["spelled"], 1 << 20)}
        seconds: dict[str, Any] = {**_floats(timing_fields), **counts}
        timing = Timing(**seconds, stages=times, recoveries=recoveries)
        stop = None if fields["stop_string"] is None else _string(fields["stop_string"])
        request_id = _string(fields["request_id"])
        scored = tuple(_sampled(one) for one in _list(fields["prompt_sampled"], MAX_IDS))
        return AnswerSummary(
            fields["finish_reason"], prompt_tokens, timing, stages, sampled, spelled, stop, request_id, scored
        )
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise RemoteProtocolError(f"an answer summary is malformed: {error}") from error


def _recovery(fields: Any) -> Recovery:
    if fields["how"] not in get_args(RecoveryKind):
        raise RemoteProtocolError("an answer that recovered in no known way")
    return Recovery(fields["how"], float(fields["pause_s"]), _unsigned(fields["prefilled"]))


def _sampled(fields: Any) -> Sampled:
    token, logprob, top = fields
    return Sampled(
        _unsigned(token), float(logprob), tuple((_unsigned(one), float(value)) for one, value in _list(top, 20))
    )


def decode_stages(fields: Mapping[str, Any]) -> tuple[StageInfo, ...]:
    """The ``stages`` of an answer summary or of a cluster's state; numbers that are not known yet are 0.

    Raises:
        RemoteProtocolError: there is no list of stages, or a stage is malformed.
    """
    try:
        return tuple(_stage(stage) for stage in _list(fields.get("stages"), MAX_STAGES))
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise RemoteProtocolError(f"a stage is malformed: {error}") from error


def _stage(fields: Mapping[str, Any]) -> StageInfo:
    start, stop = fields["layers"]
    return StageInfo(
        index=_unsigned(fields["index"]),
        layers=LayerRange(_unsigned(start), _unsigned(stop)),
        node=_string(fields["node"])[:200],
        address=_string(fields["address"])[:200],
        pid=_unsigned(fields["pid"] or 0),
        backend=_string(fields["backend"])[:200],
        device=_string(fields["device"])[:200],
        chunk=_unsigned(fields.get("chunk", 0)),
        context=_unsigned(fields.get("context", 0)),
        prefill_s=float(fields.get("prefill_s", 0.0)),
        decode_s=float(fields["decode_s"] or 0.0),
        hop_s=float(fields.get("hop_s", 0.0)),
        bytes_per_s=float(fields.get("bytes_per_s", 0.0)),
        rewinds=bool(fields.get("rewinds", True)),
    )


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise RemoteProtocolError(f"a {type(value).__name__} where text is expected")
    return value


def _unsigned(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise RemoteProtocolError(f"{value!r:.40} where a whole number is expected")
    return value


def _list(value: Any, max_items: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > max_items:
        raise RemoteProtocolError(f"a list of at most {max_items} entries is expected")
    return value


def _pair(value: Any) -> tuple[int, float]:
    if not isinstance(value, list) or len(value) != 2 or type(value[1]) not in (int, float):
        raise RemoteProtocolError(f"{value!r:.40} where a token id and its bias are expected")
    return _unsigned(value[0]), value[1]


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"{value!r:.40} where an object is expected")
    return value


def _floats(fields: Any) -> dict[str, float]:
    return {name: float(value) for name, value in _object(fields).items()}


def _numbers(fields: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in fields.items():
        if type(value) not in (int, float) and not (name in ("seed", "logprobs") and value is None):
            raise RemoteProtocolError(f"{name} is {value!r:.40}, not a number")
    return dict(fields)
