"""Sampling defaults and end tokens of a model folder, and how they combine with the options of a user."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.cli.answer_options import with_recommended
from edgepp.coordinator.json_codec import decode_sampling, encode_sampling
from edgepp.engine.request import SamplingOptions
from edgepp.errors import ModelError, RemoteProtocolError
from edgepp.model.config.generation import FALLBACK_DEFAULTS, GenerationDefaults, end_ids, generation_defaults

QWEN = SamplingOptions(temperature=0.7, repetition_penalty=1.05, top_p=0.8, top_k=20)


def folder(tmp_path: Path, form: Any) -> Path:
    (tmp_path / "generation_config.json").write_text(json.dumps(form))
    return tmp_path


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"eos_token_id": 2}, FALLBACK_DEFAULTS),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
            GenerationDefaults(0.7, 0.8, 20, 1.05),
        ),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, GenerationDefaults(0.6, 0.9)),
        ({"do_sample": True}, GenerationDefaults(1.0)),
        ({"do_sample": False, "temperature": 0.9, "repetition_penalty": 1.1}, GenerationDefaults(0.0, 1.0, 0, 1.1)),
        ({"temperature": 1, "top_p": None, "top_k": -1}, GenerationDefaults(1.0)),
    ],
    ids=str,
)
def test_recommended_options_are_read(tmp_path: Path, form: Any, expected: GenerationDefaults) -> None:
    assert generation_defaults(folder(tmp_path, form)) == expected


def test_a_model_without_the_file_has_defaults(tmp_path: Path) -> None:
    assert generation_defaults(tmp_path) == FALLBACK_DEFAULTS


@pytest.mark.parametrize(
    "form",
    [
        [],
        {"temperature": "hot"},
        {"temperature": True},
        {"top_p": 1.5},
        {"top_k": [1]},
        {"do_sample": 1},
        {"top_p": float("nan")},
    ],
    ids=str,
)
def test_an_unusable_value_is_named(tmp_path: Path, form: Any) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        generation_defaults(folder(tmp_path, form))


def test_a_pipe_or_an_endless_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    os.mkfifo(file)
    with pytest.raises(ModelError, match="is a named pipe"):
        generation_defaults(tmp_path)
    file.unlink()
    file.write_text("{" + " " * (1 << 26) + "}")
    with pytest.raises(ModelError, match="MiB"):
        generation_defaults(tmp_path)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "generation_config.json").write_bytes(text)
    for read in (generation_defaults, end_ids):
        with pytest.raises(ModelError, match=r"generation_config\.json"):
            read(tmp_path)


@given(
    st.dictionaries(
        st.sampled_from(["temperature", "top_p", "top_k", "repetition_penalty", "do_sample"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.integers(), max_size=2),
    )
)
def test_any_file_gives_usable_options_or_a_named_error(tmp_path_factory: pytest.TempPathFactory, form: Any) -> None:
    path = folder(tmp_path_factory.mktemp("model"), form)
    try:
        found = generation_defaults(path)
    except ModelError:
        return
    SamplingOptions(found.temperature, found.repetition_penalty, found.top_p, top_k=found.top_k)


@pytest.mark.parametrize(
    ("given_options", "exact", "expected"),
    [
        ({}, False, QWEN),
        ({}, True, SamplingOptions()),
        ({"temperature": 0.0}, False, SamplingOptions()),
        ({"temperature": 0.3}, False, SamplingOptions(0.3, 1.05, 0.8, top_k=20)),
        ({"temperature": 0.3}, True, SamplingOptions(0.3, 1.05, 0.8, top_k=20)),
        ({"top_k": 5, "repetition_penalty": 1.0}, False, SamplingOptions(0.7, 1.0, 0.8, top_k=5)),
        ({"temperature": 0.0, "repetition_penalty": 1.2}, False, SamplingOptions(repetition_penalty=1.2)),
    ],
    ids=str,
)
def test_given_options_win(given_options: dict[str, Any], exact: bool, expected: SamplingOptions) -> None:
    assert with_recommended(SamplingOptions(**given_options), QWEN, given_options, exact=exact) == expected


def test_a_seed_draws_also_exactly() -> None:
    assert with_recommended(SamplingOptions(seed=5), QWEN, {}, exact=True).temperature == 0.7


def test_sampling_options_survive_the_wire() -> None:
    assert decode_sampling(json.loads(json.dumps(encode_sampling(QWEN)))) == QWEN


@pytest.mark.parametrize(
    "form", [None, {}, encode_sampling(QWEN) | {"top_p": 7}, encode_sampling(QWEN) | {"top_k": "x"}], ids=str
)
def test_invalid_sampling_options_from_the_wire_are_refused(form: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_sampling(form)
