"""Any exception as a sentence, a next step and a status; what a report holds; what the package shows."""

from __future__ import annotations

import errno
import os
import pydoc
import sys
import traceback
from pathlib import Path

import filelock
import pytest
import zmq

import edgepp
from edgepp import crash_report as report
from edgepp.child_process import trusted_path
from edgepp.error_boundary import exit_status, explained
from edgepp.errors import EdgeppError, InternalError, UsageError
from edgepp.model.catalogue.cards import catalogue
from edgepp.model.catalogue.ollama_names import candidates

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
        (not_utf8(), "byte 0xe9 at 3 is no utf-8", 2),
        (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates"), "U+DCE9", 2),
        (EOFError(), "ended too early", 1),
        (ImportError("libgomp.so.1: not found"), "libgomp", 1),
        (filelock.Timeout("/x/cluster.lock"), "another edgepp holds /x/cluster.lock", 1),
        (zmq.ZMQError(errno.EMFILE), "Too many open files", 1),
        *[
            (OSError(number, os.strerror(number), "/x/y"), f"/x/y: {os.strerror(number)}", 1)
            for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EIO, 9999)
        ],
        (OSError("said by a library"), "said by a library", 1),
        (OSError(errno.EACCES, "Permission denied", b"/x/\xff\x1b]52"), "/x/", 1),
    ],
)
def test_what_the_machine_does_is_one_sentence(error: BaseException, says: str, status: int) -> None:
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


def test_a_fault_of_ours_is_reported_without_anything_personal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_speaks_of_code_is_kept_and_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["edgepp", "chat", "-p", "grandmother tales"])
    key, address = "rq5xTn8yGJ2vKpLw9cZb3dHfM7sA4eUo", "192.168.7.20"
    text = report.report_text(
        TypeError(f"unsupported operand in tales at /home/alice/model of bob@example.org, {key}, {address}")
    )
    assert "unsupported operand" in text
    for personal in ("tales", "alice", "example.org", key, address):
        assert personal not in text


def test_reports_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_written", {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for number in range(20):
        explained(type(f"Odd{number}", (Exception,), {})())
    assert len(list(tmp_path.iterdir())) <= 8
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    monkeypatch.setattr(report, "_written", {})
    assert "please report this" in explained(ValueError()).hint


def test_an_uncaught_error_shows_what_to_do_next() -> None:
    error = EdgeppError("it is gone", "start it again")
    assert traceback.format_exception(error)[-1] == "  try: start it again\n"
    error.hint = "or leave it"
    assert traceback.format_exception(error)[-1] == "  try: or leave it\n"
    assert str(error) == "it is gone"
    error.hint = ""
    assert traceback.format_exception(error)[-1].endswith("it is gone\n")


def test_the_package_shows_its_names() -> None:
    assert set(edgepp.__all__) <= set(dir(edgepp))
    for name in edgepp.__all__:
        assert getattr(edgepp, name) is not None
    shown = pydoc.plain(pydoc.render_doc(edgepp))
    for name in set(edgepp.__all__) - {"__version__"}:
        assert name in shown
    errors = {name for name, value in vars(edgepp.errors).items() if isinstance(value, type)}
    assert errors <= set(edgepp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = edgepp.Nothing  # type: ignore[attr-defined]


def test_children_import_from_everywhere_but_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "model"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", ["", str(here), str(tmp_path), *sys.path])
    assert str(tmp_path) in trusted_path()
    assert not {"", str(here)} & set(trusted_path())
    monkeypatch.chdir(Path(pytest.__file__).parent.parent)  # where packages are installed, they still are
    assert str(Path.cwd()) in trusted_path()
    here.rmdir()


def test_a_removed_folder_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert trusted_path()


@pytest.mark.parametrize(
    ("name", "cards"),
    [
        ("llama3.1:8b", ["llama-3.1-8b-4bit"]),
        ("Llama3.1:8B-instruct-q4_K_M", ["llama-3.1-8b-4bit"]),
        ("llama3.2:1b-instruct-q8_0", ["llama-3.2-1b-8bit"]),
        ("llama3.2:1b-instruct-fp16", ["llama-3.2-1b-bf16"]),
        ("llama-3.1-8b", ["llama-3.1-8b-4bit"]),
        ("llama3.3", ["llama-3.3-70b-4bit"]),
        ("llama3.2:latest", ["llama-3.2-1b-4bit", "llama-3.2-3b-4bit"]),
        ("smollm2:135m", ["smollm2-135m"]),
        ("smollm2:360m", ["smollm2-360m-bf16"]),
        ("llama3.1:8b-q5_K_M", []),
        ("llama3.1:9b", []),
        ("mistral:7b", []),
        ("", []),
    ],
)
def test_names_as_ollama_writes_them(name: str, cards: list[str]) -> None:
    assert candidates(name, catalogue()) == cards
