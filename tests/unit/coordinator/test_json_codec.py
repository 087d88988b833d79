from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.coordinator.json_codec import (
    AnswerSummary,
    decode_question,
    decode_stages,
    decode_summary,
    encode_question,
    encode_summary,
)
from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampled
from edgepp.engine.timing import StageTimes, Timing
from edgepp.errors import EdgeppError, RemoteProtocolError, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.text.conversation import Conversation
from tests.builders.stages import stage_info

OPTIONS = GenerateOptions(
    9, ("stop",), True, SamplingOptions(0.7, 1.1, 0.9, 0.05, 40, 7, 0.5, -0.5, ((3, 1.5), (7, -100)), 5)
)
HELD = GenerateOptions(9, constraint=Constraint("regex", "[a-z]+é"), prompt_logprobs=3)
STAGE = stage_info(
    layers=LayerRange(0, 4),
    node="mini",
    address="10.0.0.2:4000",
    pid=7,
    prefill_s=0.001,
    decode_s=0.01,
    hop_s=0.0002,
    bytes_per_s=1e8,
)
OUTCOME = AnswerSummary("stop", 12, Timing(1.0, 1.5, 2.5, 9, stages=[StageTimes(0.1, 0.2, 0.3)]), (STAGE,))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def over_the_wire(form: dict[str, Any]) -> dict[str, Any]:
    received: dict[str, Any] = json.loads(json.dumps(form))
    return received


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": [1, 2.5, None, "é"]}}}
AGENT = Conversation(
    [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
        {"role": "assistant", "content": "It is"},
    ],
    [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}],
    {"enable_thinking": False},
    True,
)


@pytest.mark.parametrize("prompt", ["raw text", AGENT, (3, 5)], ids=["raw", "chat", "ids"])
@pytest.mark.parametrize("options", [OPTIONS, HELD], ids=["sampled", "held"])
def test_a_question_survives_the_wire(prompt: Any, options: GenerateOptions) -> None:
    assert decode_question(over_the_wire(encode_question(prompt, options))) == (prompt, options)


def test_an_outcome_survives_the_wire() -> None:
    assert decode_summary(over_the_wire(encode_summary(OUTCOME))) == OUTCOME


def test_log_probabilities_and_their_texts_survive_the_wire() -> None:
    outcome = replace(
        OUTCOME, stop_string="é", sampled=(Sampled(3, -0.5, ((3, -0.5), (9, -1.5))),), spelled={3: " hé", 9: "\ufffd"}
    )
    outcome = replace(outcome, prompt_sampled=(Sampled(9, -2.5), *outcome.sampled))
    assert decode_summary(over_the_wire(encode_summary(outcome))) == outcome


@given(st.sampled_from(["prompt", "messages", "options"]), JSON)
def test_a_question_with_anything_else_in_it_is_refused_by_name(field: str, junk: Any) -> None:
    form = over_the_wire(encode_question("hi", OPTIONS))
    form[field] = junk
    try:
        decode_question(form)
    except EdgeppError:
        return
    assert field == "prompt"
    assert isinstance(junk, str)


@pytest.mark.parametrize("field", ["messages", "tools", "variables", "continues", "ids"])
@given(junk=JSON)
def test_a_conversation_with_anything_else_in_it_is_refused_by_name(field: str, junk: Any) -> None:
    form = over_the_wire(encode_question(AGENT, OPTIONS))
    form[field] = junk
    try:
        decode_question(form)
    except EdgeppError:
        return
    assert field in ("tools", "variables", "continues")
    assert not junk or isinstance(junk, dict | bool)


@pytest.mark.parametrize("field", ["role", "content", "tool_calls", "tool_call_id", "reasoning_content", "other"])
@given(junk=JSON)
def test_a_message_with_anything_else_in_it_is_refused_by_name(field: str, junk: Any) -> None:
    form = over_the_wire(encode_question(AGENT, OPTIONS))
    form["messages"][1][field] = junk
    try:
        decode_question(form)
    except EdgeppError:
        return
    assert field != "other"
    assert not junk or isinstance(junk, str)


@given(st.sampled_from(["finish_reason", "prompt_tokens", "timing", "stages", "spelled"]), JSON)
def test_an_outcome_with_anything_else_in_it_is_refused(field: str, junk: Any) -> None:
    form = over_the_wire(encode_summary(OUTCOME))
    form[field] = junk
    try:
        decode_summary(form)
    except RemoteProtocolError:
        return
    assert field == "prompt_tokens" or junk == form[field]


@pytest.mark.parametrize("junk", ["text", 5, None, [1], ["x"]])
def test_times_of_a_stage_that_are_no_object_are_refused(junk: Any) -> None:
    form = over_the_wire(encode_summary(OUTCOME))
    form["timing"]["stages"] = [junk]
    with pytest.raises(RemoteProtocolError, match="an object is expected"):
        decode_summary(form)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_tokens": 0}, UsageError),
        ({"max_tokens": "9"}, RemoteProtocolError),
        ({"stop": "x"}, RemoteProtocolError),
        ({"sampling": {"temperature": 1}}, RemoteProtocolError),
        ({"sampling": {"logit_bias": [], "temperature": "hot"}}, RemoteProtocolError),
        ({"sampling": {"logit_bias": [], "temperature": -1}}, UsageError),
        ({"sampling": {"logit_bias": [], "seed": 1.5}}, UsageError),
        ({"sampling": {"logit_bias": [], "colour": 1}}, RemoteProtocolError),
        ({"sampling": {"logit_bias": [[3]]}}, RemoteProtocolError),
        ({"sampling": {"logit_bias": [["3", 1.0]]}}, RemoteProtocolError),
        ({"sampling": {"logit_bias": [[3, None]]}}, RemoteProtocolError),
        ({"sampling": {"logit_bias": [[3, 101]]}}, UsageError),
        ({"constraint": {"kind": "regex"}}, RemoteProtocolError),
        ({"constraint": {"kind": "regex", "text": 3}}, RemoteProtocolError),
        ({"constraint": {"kind": ["regex"], "text": "a"}}, UsageError),
        ({"constraint": {"kind": "shell", "text": "a"}}, UsageError),
        ({"constraint": {"kind": "regex", "text": "a"}}, UsageError),
    ],
    ids=str,
)
def test_options_are_checked(options: dict[str, Any], error: type[EdgeppError]) -> None:
    form = over_the_wire(encode_question("hi", OPTIONS))
    form["options"] |= options
    with pytest.raises(error):
        decode_question(form)


STATUS_STAGE: dict[str, Any] = {
    "index": 0, "layers": [0, 4], "node": "mini", "address": "", "pid": None, "backend": "onnx", "device": "cpu",
    "decode_s": None,
}  # fmt: skip


def test_a_stage_of_a_state_that_still_loads_is_read_with_zeros() -> None:
    (stage,) = decode_stages({"stages": [STATUS_STAGE]})
    assert stage == StageInfo(0, LayerRange(0, 4), "mini", "", 0, "onnx", "cpu", 0, 0, 0.0, 0.0)


@pytest.mark.parametrize("field", ["index", "layers", "node", "address", "pid", "backend", "device", "decode_s"])
@given(junk=JSON)
def test_a_state_with_anything_else_in_a_stage_is_refused_by_name_or_read(field: str, junk: Any) -> None:
    try:
        (stage,) = decode_stages({"stages": [STATUS_STAGE | {field: junk}]})
    except RemoteProtocolError:
        return
    assert isinstance(stage.index, int)
    assert isinstance(stage.node, str)


@pytest.mark.parametrize("form", [{}, {"stages": None}, {"stages": [1]}, {"stages": [{}]}])
def test_a_state_without_stages_is_refused(form: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_stages(form)
