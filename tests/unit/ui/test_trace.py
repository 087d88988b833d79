"""The file of a trace is tried before the answer, and keeps what it holds until there is a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepp.errors import UsageError
from edgepp.ui.trace import check_writable, write_all


def test_a_file_that_can_be_written_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "earlier.json"
    write_all((), file)
    earlier = file.read_text()
    check_writable(file)
    assert file.read_text() == earlier


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"trace\.json cannot be written: No such file"):
        check_writable(tmp_path / "absent" / "trace.json")
