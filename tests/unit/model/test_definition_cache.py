"""What is read of a tokenizer's folder is kept, until a file that it was read from changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgepp.errors import ModelError
from edgepp.model.bounded_files import tokenizer_files
from edgepp.model.text import definition_cache
from edgepp.model.text.definition_cache import _MAX_ENTRIES, cached_definition

FACTS: dict[str, Any] = {
    "definition": '{"model": {}}',
    "template": "{{ messages }}",
    "tool_template": None,
    "bos": None,
    "eos": 2,
    "special": {"eos_token": "</s>"},
}


class Reader:
    """Stands for the text process: gives ``facts``, and counts how often it was asked."""

    def __init__(self, facts: dict[str, Any] = FACTS, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.facts, self.asked, self._meanwhile = facts, 0, meanwhile

    def __call__(self) -> dict[str, Any]:
        self.asked += 1
        self._meanwhile()
        return self.facts


def definition(folder: Path, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return cached_definition(folder, tokenizer_files(folder), read)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenizers"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_folder_is_read_once(cache: Path, folder: Path, tmp_path: Path) -> None:
    read = Reader()
    assert definition(folder, read) == FACTS
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert definition(folder, read) == FACTS
    assert definition(folder.rename(tmp_path / "elsewhere"), read) == FACTS
    assert read.asked == 1


def test_the_files_are_listed_once_where_the_cache_has_the_folder(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition(folder, Reader())
    listed: list[Path] = []
    monkeypatch.setattr(definition_cache, "tokenizer_files", listed.append)
    assert definition(folder, Reader()) == FACTS
    assert listed == []


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"]
)
def test_a_folder_with_another_file_is_read_again(cache: Path, folder: Path, name: str) -> None:
    read = Reader()
    definition(folder, read)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('{"other": 1}')
    definition(folder, read)
    definition(folder, read)
    assert read.asked == 2


def test_what_moves_from_one_file_into_another_is_read_again(cache: Path, folder: Path) -> None:
    read = Reader()
    (folder / "tokenizer_config.json").write_text("ab")
    (folder / "vocab.json").write_text("c")
    definition(folder, read)
    (folder / "tokenizer_config.json").write_text("a")
    (folder / "vocab.json").write_text("bc")
    definition(folder, read)
    assert read.asked == 2


def test_a_file_that_changes_while_it_is_read_is_not_kept(cache: Path, folder: Path) -> None:
    definition(folder, Reader(meanwhile=lambda: (folder / "tokenizer.json").write_text("[]")))
    read = Reader(FACTS | {"eos": 3})
    assert definition(folder, read)["eos"] == 3
    (folder / "tokenizer.json").write_text("{}")
    assert definition(folder, read)["eos"] == 3
    assert read.asked == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        *(json.dumps(FACTS | {name: [1]}).encode() for name in FACTS),
        *(json.dumps({key: value for key, value in FACTS.items() if key != name}).encode() for name in FACTS),
    ],
)
def test_a_damaged_entry_is_read_again_and_replaced(cache: Path, folder: Path, damage: bytes) -> None:
    read = Reader()
    definition(folder, read)
    (entry,) = cache.iterdir()
    entry.write_bytes(damage)
    assert definition(folder, read) == FACTS
    assert definition(folder, read) == FACTS
    assert read.asked == 2


def test_an_entry_that_is_a_pipe_is_not_waited_for(cache: Path, folder: Path) -> None:
    definition(folder, Reader())
    (entry,) = cache.iterdir()
    entry.unlink()
    os.mkfifo(entry)
    assert definition(folder, Reader()) == FACTS


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(cache: Path, folder: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert definition(folder, Reader()) == FACTS


def test_what_the_reader_refuses_is_not_kept(cache: Path, folder: Path) -> None:
    def refuse() -> dict[str, Any]:
        raise ModelError("the tokenizer cannot be read")

    with pytest.raises(ModelError):
        definition(folder, refuse)
    assert definition(folder, Reader()) == FACTS


def test_old_entries_are_removed(cache: Path, folder: Path) -> None:
    for number in range(_MAX_ENTRIES + 3):
        (folder / "tokenizer.json").write_text(str(number))
        definition(folder, Reader())
    assert len(list(cache.iterdir())) == _MAX_ENTRIES
    last = Reader()
    definition(folder, last)
    assert last.asked == 0
