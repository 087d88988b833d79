"""Stand-ins for ``systemctl``, ``loginctl`` and ``launchctl``: they note how they were called, and answer as told.

No service manager runs where CI does, and launchd runs on a Mac alone. `make service-test` has the real systemd.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

_SCRIPT = """\
#!{python} -IS
import json, pathlib, sys
folder = pathlib.Path({folder!r})
name = pathlib.Path(sys.argv[0]).name
with (folder / "calls").open("a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
answers = json.loads((folder / "answers.json").read_text())
for word in sys.argv[1:]:
    if word in answers:
        status, out, err = answers[word]
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(status)
"""


class FakeManager:
    """The commands of a service manager, first on the ``PATH`` of this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._answers: dict[str, tuple[int, str, str]] = {}
        folder.mkdir()
        (folder / "calls").touch()
        for name in ("systemctl", "loginctl", "launchctl", "journalctl", "tail"):
            script = folder / name
            script.write_text(_SCRIPT.format(python=sys.executable, folder=str(folder)))
            script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        self.answer()

    def answer(self, word: str = "", status: int = 0, out: str = "", err: str = "") -> None:
        """Let calls that contain the argument ``word`` print ``out`` and ``err`` and end with ``status``."""
        if word:
            self._answers[word] = (status, out, err)
        (self._folder / "answers.json").write_text(json.dumps(self._answers))

    @property
    def calls(self) -> list[str]:
        """The command lines so far."""
        return [" ".join(json.loads(line)) for line in (self._folder / "calls").read_text().splitlines()]
