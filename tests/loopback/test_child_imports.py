"""What child processes import, whatever is installed beside edgepp, and how Ctrl-C ends them meanwhile."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from edgepp.child_process import interrupts_held, python_command
from tests.waiting import PATIENCE_S


def test_an_installed_pytorch_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would import it, and the process that reads tokenizers may not use as much memory."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise MemoryError('too large')")
    (tmp_path / "torch-9.9.9.dist-info").mkdir()
    (tmp_path / "torch-9.9.9.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    program = "from edgepp.model.text.tokenizer_definition import import_reader; import_reader(); print('read')"
    (tmp_path / "reading_program.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    done = subprocess.run(python_command("reading_program"), capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("read\n", 0), done.stderr


def test_ctrl_c_before_the_first_import_ends_a_child_without_a_word() -> None:
    with interrupts_held():
        child = subprocess.Popen(
            python_command("edgepp.stage_process.main"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    child.send_signal(signal.SIGINT)  # the interpreter has only just begun; the input, which it would read, stays open
    assert child.wait(PATIENCE_S) == -signal.SIGINT
    assert child.communicate() == ("", "")


def test_a_child_starts_where_the_current_folder_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may be removed while `edgepp serve` runs, long before a child is started again."""
    gone = tmp_path / "gone"
    gone.mkdir()
    (tmp_path / "asking_program.py").write_text("import os; print(os.getcwd())")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = subprocess.run(python_command("asking_program"), capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("/\n", 0), done.stderr
