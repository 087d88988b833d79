from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgepp.engine.request import Constraint, GenerateOptions
from edgepp.http_api.failures import RequestError
from edgepp.http_api.ollama_api.options import generate_options, is_zero, think_variables
from tests.builders.scripted_service import SERVED

PLAIN = replace(SERVED, sampling={})


def options(given: dict[str, Any] | None = None, form: Any = None, **logprobs: Any) -> GenerateOptions:
    return generate_options(PLAIN, given, form, logprobs.get("logprobs"), logprobs.get("top_logprobs"))


def test_defaults_are_those_of_ollama_where_the_makers_recommend_nothing() -> None:
    sampling = options().sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.8, 40, 0.9)
    assert (sampling.repetition_penalty, sampling.seed, sampling.logprobs) == (1.0, None, None)


def test_recommended_options_come_before_ollamas_and_given_ones_before_both() -> None:
    model = replace(SERVED, sampling={"temperature": 0.2, "top_k": 20.0, "repetition_penalty": 1.2})
    sampling = generate_options(model, {"temperature": 0}, None, None, None).sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty) == (0, 20, 0.9, 1.2)


@pytest.mark.parametrize(
    ("num_predict", "max_tokens"),
    [(None, 2048), (-1, 2048), (-2, 2048), (0, 2048), (5, 5), (5.0, 5), (10**9, 2048), (10**30, 2048), (1e30, 2048)],
)
def test_num_predict(num_predict: float | None, max_tokens: int) -> None:
    assert options({"num_predict": num_predict}).max_tokens == max_tokens


def test_every_option_that_edgepp_has_is_taken() -> None:
    given = {
        "seed": 7, "temperature": 1, "top_k": 5.0, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.5,
        "frequency_penalty": 0.5, "presence_penalty": -0.5, "stop": ["a", "", "b"],
    }  # fmt: skip
    found = options(given)
    sampling = found.sampling
    assert (sampling.seed, sampling.temperature, sampling.top_k, sampling.top_p) == (7, 1, 5, 0.5)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.5)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.5)
    assert found.stop == ("a", "b")


def test_options_of_loading_and_of_no_name_are_ignored() -> None:
    given = {
        "num_ctx": 1 << 20,
        "num_gpu": 99,
        "mirostat": 2,
        "tfs_z": 1.0,
        "of_no_name": {"a": []},
        "temperature": None,
    }
    assert options(given) == options()


def test_a_repeat_penalty_of_zero_is_none() -> None:
    assert options({"repeat_penalty": 0}).sampling.repetition_penalty == 1.0


@pytest.mark.parametrize("top_k", [0, -1])
def test_no_top_k(top_k: int) -> None:
    assert options({"top_k": top_k}).sampling.top_k == 0


def test_a_negative_seed_is_no_seed() -> None:
    assert options({"seed": -1}).sampling.seed is None


@pytest.mark.parametrize(("stop", "taken"), [("x", ("x",)), (None, ()), ([], ()), ("", ())])
def test_stop(stop: Any, taken: tuple[str, ...]) -> None:
    assert options({"stop": stop}).stop == taken


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"temperature": "hot"}, "options.temperature must be a number, not 'hot'"),
        ({"seed": True}, "options.seed must be a number, not True"),
        ({"stop": 1}, "options.stop must be a list of texts, not 1"),
        ({"stop": [1]}, "options.stop must be a list of texts, not [1]"),
        ({"repeat_penalty": -1}, "repeat_penalty must lie between 0.01 and 100.0, not -1"),
    ],
)
def test_a_wrong_option_is_named(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        options(given)
    assert (str(caught.value), caught.value.kind) == (sentence, "invalid_request")


@pytest.mark.parametrize(
    ("form", "constraint"),
    [
        (None, None),
        ("", None),
        ("json", Constraint("json")),
        ({}, Constraint("json")),
        ({"type": "object"}, Constraint("json_schema", '{"type":"object"}')),
    ],
)
def test_format(form: Any, constraint: Constraint | None) -> None:
    assert options(form=form).constraint == constraint


def test_a_format_of_another_name_is_refused() -> None:
    with pytest.raises(RequestError, match="format is 'json' or a JSON schema, not 'yaml'"):
        options(form="yaml")


@pytest.mark.parametrize(
    ("asked", "top", "logprobs"), [(True, None, 0), (True, 3, 3), (False, 3, None), (None, 3, None)]
)
def test_logprobs(asked: bool | None, top: int | None, logprobs: int | None) -> None:
    assert options(logprobs=asked, top_logprobs=top).sampling.logprobs == logprobs


def test_too_many_logprobs_are_refused_by_the_name_that_the_client_used() -> None:
    with pytest.raises(RequestError, match=r"^top_logprobs must lie between 0 and 20, not 21$"):
        options(logprobs=True, top_logprobs=21)


THINKER = replace(SERVED, thinks=True)


@pytest.mark.parametrize(
    ("think", "variables"),
    [
        (None, {}),
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("low", {"enable_thinking": True, "reasoning_effort": "low"}),
        ("max", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_think(think: Any, variables: dict[str, Any]) -> None:
    assert think_variables(THINKER, "m", think) == variables


def test_a_model_that_does_not_think_can_be_told_not_to() -> None:
    assert think_variables(SERVED, "m", False) == {}


def test_a_model_that_does_not_think_cannot_be_told_to() -> None:
    with pytest.raises(RequestError, match='"m" does not support thinking'):
        think_variables(SERVED, "m", True)


def test_an_effort_of_another_name_is_refused() -> None:
    with pytest.raises(RequestError, match="think is true, false or low, medium, high, max, not 'hard'"):
        think_variables(THINKER, "m", "hard")


@pytest.mark.parametrize(
    ("keep_alive", "zero"),
    [
        (None, False), (0, True), (0.0, True), (-1, False), (300, False), ("0", True), ("0s", True), ("-1", False),
        ("5m", False), ("1h30m", False), ("1.5h", False), ("-1s", False), ("300ms", False), ("24h", False),
    ],
)  # fmt: skip
def test_keep_alive(keep_alive: Any, zero: bool) -> None:
    assert is_zero(keep_alive) is zero


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "m5"])
def test_a_keep_alive_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="keep_alive is a number of seconds or a duration"):
        is_zero(text)
