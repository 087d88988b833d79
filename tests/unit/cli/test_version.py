"""`edgepp version` and `edgepp completion`."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgepp.benchmark import machine
from edgepp.cli.commands import cli


def test_version_says_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "commit", lambda: "abc123")  # no Git process on this shelf
    found = json.loads(CliRunner().invoke(cli, ["version", "--json"]).output)
    assert found["version"] == metadata.version("edgepp")
    assert found["backends"]["onnxruntime"] == metadata.version("onnxruntime")
    assert found["commit"] == "abc123"
    assert {"protocol", "python", "platform", "executable"} <= set(found)
    plain = CliRunner().invoke(cli, ["version"]).output
    assert f"edgepp {found['version']}" in plain
    assert found["python"] in plain


@pytest.mark.parametrize(
    ("record", "commit"),
    [
        ('{"url": "https://host.example/e", "vcs_info": {"vcs": "git", "commit_id": "abc123"}}', "abc123"),
        ('{"url": "file:///x/edgepp-0.1.0-py3-none-any.whl", "archive_info": {}}', None),
        (None, None),
        ("not JSON", None),
    ],
)
def test_an_installed_package_knows_the_commit_that_it_was_installed_from(
    record: str | None, commit: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "edgepp-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: edgepp\nVersion: 9\n")
    if record is not None:
        (folder / "direct_url.json").write_text(record)
    monkeypatch.setattr(machine, "commit", lambda: None)  # as outside of a clone
    monkeypatch.syspath_prepend(str(tmp_path))
    assert machine.installed_commit() == commit


@pytest.mark.parametrize("shell", ["zsh", "fish"])  # for Bash click starts a process: tests/loopback has it
def test_each_shell_has_a_script(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    assert "_EDGEPP_COMPLETE" in done.output


def test_another_shell_is_refused() -> None:
    assert CliRunner().invoke(cli, ["completion", "tcsh"]).exit_code == 2
