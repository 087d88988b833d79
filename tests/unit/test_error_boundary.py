"""Any exception becomes one sentence, a next step and an exit status; a fault of edgepp also becomes a report."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import filelock
import pytest
import zmq

import edgepp
from edgepp import crash_report as report
from edgepp.error_boundary import exit_status, explained
from edgepp.errors import InternalError, UsageError

PRIVATE = "the prompt of alice"


def not_utf8() -> UnicodeError:
    try:
        b"caf\xe9".decode()
    except UnicodeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "says", "status"),
    [
        (UsageError("no"), "no", 2),
        (MemoryError(), "memory ran out", 1),
        (RecursionError(), "nested too deeply", 1),
        (not_utf8(), "byte 0xe9 at 3 is not utf-8", 2),
        (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates"), "U+DCE9", 2),
        (EOFError(), "ended too early", 1),
        (ImportError("libgomp.so.1: not found"), "libgomp", 1),
        (filelock.Timeout("/x/cluster.lock"), "another edgepp process holds /x/cluster.lock", 1),
        (zmq.ZMQError(errno.EMFILE), "Too many open files", 1),
        *[
            (OSError(number, os.strerror(number), "/x/y"), f"/x/y: {os.strerror(number)}", 1)
            for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EIO, 9999)
        ],
        (OSError("said by a library"), "said by a library", 1),
        (OSError(errno.EACCES, "Permission denied", b"/x/\xff\x1b]52"), "/x/", 1),
    ],
)
def test_a_condition_of_the_machine_is_one_sentence(error: BaseException, says: str, status: int) -> None:
    known = explained(error)
    assert says in str(known)
    assert not isinstance(known, InternalError)
    assert "\n" not in str(known)
    assert "\x1b" not in str(known)
    assert exit_status(known) == status
    assert known.hint or isinstance(error, UsageError)


def failing(word: str) -> None:
    try:
        raise KeyError(word)
    except KeyError as error:
        raise ValueError(f"cannot use {word} of /home/alice/x") from error


def test_a_fault_of_edgepp_is_reported_without_personal_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_written", {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="cannot use") as caught:
        failing(PRIVATE)
    known = explained(caught.value)
    assert isinstance(known, InternalError)
    (file,) = tmp_path.iterdir()
    assert str(file) in known.hint
    assert file.stat().st_mode & 0o077 == 0
    text = file.read_text()
    assert "ValueError" in text
    assert "KeyError" in text
    assert edgepp.__version__ in text
    for personal in (PRIVATE, "alice", str(Path.home()), str(Path(__file__).parent), os.uname().nodename):
        assert personal not in text
    assert explained(caught.value).hint == known.hint, "a fault that comes again has one report"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_process_writes_a_bounded_number_of_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_written", {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for number in range(20):
        explained(type(f"Odd{number}", (Exception,), {})())
    assert len(list(tmp_path.iterdir())) <= 8
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    monkeypatch.setattr(report, "_written", {})
    assert "please report this message" in explained(ValueError()).hint


def test_messages_about_code_are_kept_and_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["edgepp", "chat", "-p", "grandmother tales"])
    key, address = "rq5xTn8yGJ2vKpLw9cZb3dHfM7sA4eUo", "192.168.7.20"
    text = report.report_text(
        TypeError(f"unsupported operand in tales at /home/alice/model of bob@example.org, {key}, {address}")
    )
    assert "unsupported operand" in text
    for personal in ("tales", "alice", "example.org", key, address):
        assert personal not in text
