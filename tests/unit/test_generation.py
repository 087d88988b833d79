"""A model's own sampling settings are read, and what is no setting is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgepp.errors import ModelError
from edgepp.model.generation import GenerationDefaults, end_ids, generation_defaults


def write(folder: Path, form: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(form))
    return folder


def test_the_settings_of_a_model(tmp_path: Path) -> None:
    form = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 40,
        "repetition_penalty": 1.1,
        "eos_token_id": 2,
    }
    assert generation_defaults(write(tmp_path, form)) == GenerationDefaults(True, 0.6, 0.9, 40, 1.1)


def test_what_is_not_stated_is_none(tmp_path: Path) -> None:
    assert generation_defaults(tmp_path) == GenerationDefaults()
    assert generation_defaults(write(tmp_path, {"temperature": None, "top_k": 0})) == GenerationDefaults(top_k=0)


@pytest.mark.parametrize(
    "form",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": True},
        {"top_p": 1.5},
        {"top_k": 2.5},
        {"top_k": 1 << 40},
        {"top_k": [1]},
        {"repetition_penalty": 0},
        {"do_sample": 1},
        [],
        None,
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, form: Any) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        generation_defaults(write(tmp_path, form))


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "generation_config.json").write_bytes(text)
    with pytest.raises(ModelError, match="not a JSON object"):
        generation_defaults(tmp_path)
    with pytest.raises(ModelError, match="not a JSON object"):
        end_ids(tmp_path)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "generation_config.json")
    with pytest.raises(ModelError, match="not a file"):
        generation_defaults(tmp_path)
