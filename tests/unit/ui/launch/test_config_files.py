"""What is written into the files of clients, and taken back."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.errors import EdgeppError
from edgepp.ui.launch.config_files import undo_config, write_config
from edgepp.ui.launch.settings import ConfigFile

OURS = {"env": {"A": "1", "B": "2"}, "model": "m"}
KEYS = st.sampled_from(["env", "A", "B", "model", "other"])
DOCUMENTS = st.dictionaries(
    KEYS,
    st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(KEYS, inner)),
    max_size=4,
)


def config(tmp_path: Path, content: Any = OURS, kind: Any = "json") -> ConfigFile:
    return ConfigFile(tmp_path / "client" / "settings", kind, content)


def record(tmp_path: Path) -> Path:
    return tmp_path / "own" / "client-undo.json"


def loaded(one: ConfigFile) -> Any:
    return json.loads(one.path.read_text())


@pytest.mark.parametrize("kind", ["json", "whole", "yaml list"])
def test_a_file_that_was_not_there_goes_again(tmp_path: Path, kind: str) -> None:
    one = config(tmp_path, OURS if kind == "json" else "- line\n", kind)
    assert write_config(one, record(tmp_path)) == one.path
    assert one.path.exists()
    assert undo_config(record(tmp_path)) == one.path
    assert not one.path.exists()
    assert not one.path.parent.exists(), "the folder that was made goes too"
    assert undo_config(record(tmp_path)) is None


def test_a_folder_that_was_there_or_is_used_stays(tmp_path: Path) -> None:
    one = config(tmp_path)
    one.path.parent.mkdir()
    write_config(one, record(tmp_path))
    undo_config(record(tmp_path))
    assert one.path.parent.exists()
    one.path.parent.rmdir()
    write_config(one, record(tmp_path))
    (one.path.parent / "theirs").touch()
    undo_config(record(tmp_path))
    assert (one.path.parent / "theirs").exists()


@given(DOCUMENTS)
@settings(deadline=None)
def test_any_object_is_as_before_after_an_undo(document: Any) -> None:
    with TemporaryDirectory() as folder:
        one = config(Path(folder))
        one.path.parent.mkdir()
        text = json.dumps(document)
        one.path.write_text(text)
        write_config(one, record(Path(folder)))
        told = loaded(one)
        assert (told["env"]["A"], told["env"]["B"], told["model"]) == ("1", "2", "m")
        undo_config(record(Path(folder)))
        assert one.path.read_text() == text


@given(DOCUMENTS)
@settings(deadline=None)
def test_an_undo_keeps_what_the_user_has_changed_since(document: Any) -> None:
    with TemporaryDirectory() as folder:
        one = config(Path(folder))
        one.path.parent.mkdir()
        one.path.write_text(json.dumps(document))
        write_config(one, record(Path(folder)))
        one.path.write_text(json.dumps(loaded(one) | {"new": 1}))
        undo_config(record(Path(folder)))
        wanted = {**document, "new": 1}
        assert loaded(one) == {name: value for name, value in wanted.items() if value != {} or name != "env"}


def test_a_value_that_the_user_has_changed_since_stays(tmp_path: Path) -> None:
    one = config(tmp_path)
    write_config(one, record(tmp_path))
    one.path.write_text(json.dumps({"env": {"A": "mine", "B": "2"}, "model": "m"}))
    undo_config(record(tmp_path))
    assert loaded(one) == {"env": {"A": "mine"}}


def test_writing_twice_is_undone_once(tmp_path: Path) -> None:
    one = config(tmp_path)
    one.path.parent.mkdir()
    one.path.write_text('{"model": "theirs"}')
    write_config(one, record(tmp_path))
    write_config(config(tmp_path, {"model": "m2"}), record(tmp_path))
    assert loaded(one) == {"model": "m2"}
    undo_config(record(tmp_path))
    assert one.path.read_text() == '{"model": "theirs"}'


def test_entries_are_added_to_a_list_and_taken_out_of_it(tmp_path: Path) -> None:
    one = config(tmp_path, '- {"model_id": "edgepp"}\n', "yaml list")
    one.path.parent.mkdir()
    one.path.write_text("- model_id: theirs")
    write_config(one, record(tmp_path))
    assert one.path.read_text() == '- model_id: theirs\n- {"model_id": "edgepp"}\n'
    one.path.write_text(one.path.read_text() + "- model_id: newer\n")
    undo_config(record(tmp_path))
    assert one.path.read_text().split() == ["-", "model_id:", "theirs", "-", "model_id:", "newer"]


@pytest.mark.parametrize(
    ("kind", "text"), [("json", '{"a": 1} // note'), ("json", "[1]"), ("yaml list", "models: {}\n")]
)
def test_a_file_that_cannot_be_changed_safely_stays(tmp_path: Path, kind: str, text: str) -> None:
    one = config(tmp_path, OURS if kind == "json" else "- x\n", kind)
    one.path.parent.mkdir()
    one.path.write_text(text)
    with pytest.raises(EdgeppError, match=str(one.path)):
        write_config(one, record(tmp_path))
    assert one.path.read_text() == text
    assert not record(tmp_path).exists()


def test_a_whole_file_that_was_changed_since_is_not_removed(tmp_path: Path) -> None:
    one = config(tmp_path, "ours\n", "whole")
    write_config(one, record(tmp_path))
    one.path.write_text("theirs\n")
    with pytest.raises(EdgeppError, match="changed after --write"):
        undo_config(record(tmp_path))
    assert one.path.read_text() == "theirs\n"


def test_a_link_stays_a_link_and_a_mode_a_mode(tmp_path: Path) -> None:
    one = config(tmp_path)
    one.path.parent.mkdir()
    target = tmp_path / "dotfiles"
    target.write_text("{}")
    target.chmod(0o640)
    one.path.symlink_to(target)
    write_config(one, record(tmp_path))
    assert one.path.is_symlink()
    assert json.loads(target.read_text()) == OURS
    assert target.stat().st_mode & 0o777 == 0o640
