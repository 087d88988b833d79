"""What child processes import, whatever is installed beside edgepp."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgepp.child_process import python_command


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
