from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

from edgepp.ui.conversation import COMMANDS, UnknownCommand, command
from edgepp.ui.keyboard import SavedHistory, group_pastes

_KEYS = {"\r": Keys.ControlM, "\n": Keys.ControlJ, "\t": Keys.ControlI, "\x03": Keys.ControlC}


def typed(text: str) -> list[KeyPress]:
    return [KeyPress(_KEYS.get(character, character), character) for character in text]


def said(keys: list[KeyPress]) -> list[tuple[str, str]]:
    return [(str(getattr(press.key, "value", press.key)), press.data) for press in keys]


@pytest.mark.parametrize("text", ["h", "hello", "/quit\r", "\n", "a\tb", "\x03"])
def test_typed_keys_stay_keys(text: str) -> None:
    assert group_pastes(typed(text)) == typed(text)


def test_a_long_text_is_one_paste_and_enter_sends_it() -> None:
    assert said(group_pastes(typed("word " * 20_000 + "\r"))) == [
        ("<bracketed-paste>", "word " * 20_000),
        ("c-m", "\r"),
    ]


@pytest.mark.parametrize("end", ["\r", "\n"])
def test_lines_that_come_at_once_are_one_question(end: str) -> None:
    assert said(group_pastes(typed(f"one{end}two\t!{end}"))) == [("<bracketed-paste>", "one\ntwo\t!"), ("c-m", "\r")]


@pytest.mark.parametrize("end", ["", "\r", "\n"])
def test_several_lines_typed_between_prompts_stay_in_the_prompt(end: str) -> None:
    assert said(group_pastes(typed(f"one\rtwo{end}"), is_kept_text=True)) == [("<bracketed-paste>", "one\ntwo")]
    assert group_pastes(typed("one\r"), is_kept_text=True) == typed("one\r")


@given(st.text(st.sampled_from("ab \r\n\t\x03"), max_size=80), st.booleans())
def test_no_key_is_lost_or_moved(text: str, is_kept_text: bool) -> None:
    kept = "".join(press.data for press in group_pastes(typed(text), is_kept_text=is_kept_text)).replace("\r", "\n")
    plain = text.replace("\r", "\n")
    assert kept == plain or (is_kept_text and kept + "\n" == plain)


def test_a_history_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    first = SavedHistory(path)
    for line in ("one", "two\nlines", "día \udce9"):
        first.store_string(line)
    assert list(SavedHistory(path).load_history_strings()) == ["día \udce9", "two\nlines", "one"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_history_does_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('"0123456789"\n' * 200_000)
    path.chmod(0o644)
    history = SavedHistory(path)
    history.store_string("newest")
    history.store_string("x" * 60_000)
    assert path.stat().st_size < 1 << 20
    kept = list(history.load_history_strings())
    assert kept[0] == "newest"
    assert len(kept) == 1000
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "damaged", "locked"])
def test_a_history_that_is_not_a_file_stops_no_chat(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "history.jsonl"
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "damaged":
            path.write_bytes(b'\xff\n{"a": 1}\n"good"\n[')
        case "locked":
            path = tmp_path / "absent" / "history.jsonl"
    history = SavedHistory(path)
    history.store_string("hello")
    assert set(history.load_history_strings()) <= {"good", "hello"}
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("line", ["/quit", "/bye", "/exit", "exit", "quit", " /quit ", "/exit "])
def test_ways_to_leave(line: str) -> None:
    assert command(line) == "/quit"


@pytest.mark.parametrize("line", [name for name in COMMANDS if name not in ("/bye", "/exit")])
def test_commands(line: str) -> None:
    assert command(f"{line}  ") == line


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "/usr/bin is what?",
        "/ is a slash",
        "/foo bar",
        " /stat",
        " /nonsense",
        "exit now?",
        "//",
        "/2 of it",
        "quit smoking, how?",
        "/a\nb",
    ],
)
def test_a_question_may_begin_with_anything(line: str) -> None:
    assert command(line) is None


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/nonsense", "there is no command /nonsense"),
        ("/stat", "did you mean /stats"),
        ("/rest please", "did you mean /reset"),
        ("/QUIT", "did you mean /quit"),
        ("/etc", "begin it with a space"),
        ("/reset it all", "/reset takes no text after it"),
    ],
)
def test_a_line_that_looks_like_a_command_is_not_sent(line: str, sentence: str) -> None:
    with pytest.raises(UnknownCommand, match=sentence):
        command(line)
