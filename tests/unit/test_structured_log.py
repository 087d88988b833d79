"""Log lines: fields of JSON lines, and text of strangers that tries to write lines of its own."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp import structured_log
from edgepp.printable import PrintableFormatter
from edgepp.structured_log import JsonFormatter, fields


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that nobody has named; a test before may have named this one."""
    monkeypatch.setattr(structured_log._process, "node", "")
    monkeypatch.setattr(structured_log._process, "stage", "")


def record(message: str, *arguments: Any, failed: bool = False, **extra: Any) -> logging.LogRecord:
    failure = None
    if failed:
        try:
            raise ValueError("a\n2026-01-01 edgepp ERROR forged")
        except ValueError:
            failure = sys.exc_info()
    made = logging.LogRecord("edgepp.test", logging.WARNING, "", 0, message, arguments, failure)
    vars(made).update(extra)
    return made


def test_a_json_line_has_the_fields_that_each_line_has_and_those_of_its_event() -> None:
    extra = fields("sequence_opened", "req_1", position=7, why=ValueError("no"))
    line = json.loads(JsonFormatter().format(record("opened %d", 3, **extra)))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "node": "",
        "stage": "",
        "request": "req_1",
        "event": "sequence_opened",
        "logger": "edgepp.test",
        "message": "opened 3",
        "position": 7,
        "why": "no",
    }


def test_a_call_without_an_event_is_known_by_its_constant_text() -> None:
    assert json.loads(JsonFormatter().format(record("dropped frame %d: %s", 3, "x")))["event"] == "dropped frame %d: %s"


def test_fields_of_an_event_do_not_replace_those_of_each_line() -> None:
    line = json.loads(JsonFormatter().format(record("x", **fields("e", "r", level="none", node="other", time=0))))
    assert (line["level"], line["node"]) == ("warning", "")
    assert line["time"]


@given(st.text(max_size=40))
def test_text_of_strangers_begins_no_line(text: str) -> None:
    hostile = f"{text}\r\n\u2028\u0085{{'level': 'error'}}\x1b[2J"
    line = JsonFormatter().format(record("said %s", hostile, **fields("e", hostile, said=hostile)))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["level"] == "warning"
    for failed in (False, True):
        shown = PrintableFormatter("%(levelname)s %(message)s").format(record("said %s", hostile, failed=failed))
        first, *rest = shown.splitlines()
        assert first.startswith("WARNING said ")
        assert all(one.startswith("  ") for one in rest)
        assert bool(rest) is failed


@pytest.mark.parametrize("failed", [False, True])
def test_a_traceback_is_one_field(failed: bool) -> None:
    line = JsonFormatter().format(record("failed", failed=failed))
    assert len(line.splitlines()) == 1
    assert ("traceback" in json.loads(line)) is failed
