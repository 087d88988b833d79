from __future__ import annotations

import io
import json

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.text import Text

from edgepp.printable import json_line
from edgepp.ui.progress import ByteProgress
from edgepp.ui.screen import Rows, Screen, say, say_json

HOSTILE = "evil\x1b]52;c;cm0gLXJm\x1b\\\x1b[2J\x9b2J\u202e[red]x[/red][link=http://a.b]y[/link]:smile:"
SHOWN = "evil\ufffd]52;c;cm0gLXJm\ufffd\\\ufffd[2J\ufffd2J\ufffd[red]x[/red][link=http://a.b]y[/link]:smile:"
TEXTS = st.text(st.characters(codec=None), max_size=30)


def screen(*, terminal: bool, width: int = 80) -> tuple[Screen, io.StringIO]:
    made, file = Screen(), io.StringIO()
    made.file = file
    made._force_terminal = terminal
    if terminal:
        made.width = width
    return made, file


def test_a_sentence_is_cleaned_and_its_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(HOSTILE, err=True, nl=False)
    assert capsys.readouterr() == (SHOWN + "\n", SHOWN)


@pytest.mark.parametrize("part", [HOSTILE, Text(HOSTILE, style="bold")], ids=["str", "Text"])
def test_what_a_screen_shows_is_cleaned_and_its_markup_is_text(part: str | Text) -> None:
    made, file = screen(terminal=True, width=200)
    made.show(part)
    assert click.unstyle(file.getvalue()) == SHOWN + "\n"


def test_a_table_and_what_is_shown_live_are_cleaned() -> None:
    made, file = screen(terminal=True, width=200)
    table = Rows("NAME")
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE, style="red"))
    with Live(table, console=made, auto_refresh=False):
        pass
    assert file.getvalue().count(SHOWN) == 2
    assert "\x1b]" not in file.getvalue()


def test_progress_of_something_with_a_hostile_name_is_cleaned() -> None:
    made, file = screen(terminal=True, width=200)
    progress = ByteProgress()
    progress(1, 2, HOSTILE)
    made.show(progress._bars.get_renderable())
    assert SHOWN[:60] in file.getvalue()
    assert "\x1b]" not in file.getvalue()


@given(st.recursive(TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)))
def test_json_keeps_every_text_and_no_control_character(value: object) -> None:
    line = json_line(value)
    assert json.loads(line) == value
    assert line.isprintable() or all(character.isprintable() or ord(character) > 0x9F for character in line)
    assert "\n" not in line
    line.encode()  # no surrogate is left


def test_json_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"name": HOSTILE, "text": "día"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": HOSTILE, "text": "día"}
    assert "día" in out


@given(
    st.lists(st.tuples(*[st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=60)] * 4), max_size=4),
    st.integers(1, 130),
)
def test_no_cell_of_a_table_is_cut_at_any_width(rows: list[tuple[str, ...]], width: int) -> None:
    table = Rows("A", ">B", "C", ">D")
    for row in rows:
        table.add_row(*row)
    made, file = screen(terminal=True, width=width)
    made.show(table)
    words = click.unstyle(file.getvalue()).split()
    for cell in (cell for row in rows for cell in row if cell):
        assert cell in words


def test_columns_that_do_not_fit_follow_below_their_row() -> None:
    table = Rows("NAME", ">SIZE", "SOURCE", ">RTT")
    table.add_row("llama-3.1-405b-4bit", "229 GB", "mlx-community/Meta-Llama-3.1-405B-Instruct-4bit", "0.1 ms")
    table.add_row("tiny", "1 MB", "", "")
    assert [line.plain for line in table.lines(75)] == [
        "NAME                   SIZE",
        "llama-3.1-405b-4bit  229 GB",
        "    source mlx-community/Meta-Llama-3.1-405B-Instruct-4bit · rtt 0.1 ms",
        "tiny                   1 MB",
    ]
    assert len(list(table.lines(120))) == 3


def test_a_piped_table_has_one_line_per_row() -> None:
    made, file = screen(terminal=False)
    table = Rows("NAME", "SOURCE")
    table.add_row("a" * 300, "b" * 300)
    made.show(table, "word " * 100)
    assert len(file.getvalue().splitlines()) == 3


def test_what_follows_below_a_row_breaks_between_words_only() -> None:
    table = Rows("REQUESTS", "LIMITED BY", "")
    table.add_row(
        "16", "a-node-with-a-name-of-more-than-forty-characters: arithmetic", "they take turns, as there is room"
    )
    lines = [line.plain for line in table.lines(40)][2:]
    assert [line.strip() for line in lines] == [
        "limited by",
        "a-node-with-a-name-of-more-than-forty-characters:",
        "arithmetic",
        "they take turns, as there is room",
    ]


def test_a_dumb_terminal_gets_no_escape_sequences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    say("one", dim=True)
    say("two", red=True, bold=True)
    assert capsys.readouterr().out == "one\ntwo\n"
