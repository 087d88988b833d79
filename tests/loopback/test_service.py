"""`edgepp service` against stand-ins for the service managers; `make service-test` has the real systemd."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgepp.cli.commands import cli
from edgepp.cluster.identity import load_identity, new_cluster, save_cluster
from edgepp.errors import EdgeppError, UsageError
from edgepp.host_system import launchd, systemd
from edgepp.ui import service as ui
from tests.builders.service_manager import FakeManager

RUNNING = "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nMainPID=77\nNRestarts=2\nExecMainStatus=0\n"
FAILED = "LoadState=loaded\nActiveState=failed\nUnitFileState=enabled\nMainPID=0\nNRestarts=5\nExecMainStatus=1\n"
PRINTED = (
    "edgepp = {\n\tactive count = 1\n\tpath = /x\n\tstate = running\n\truns = 3\n\tpid = 77\n\tlast exit code = 1\n}\n"
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeManager:
    """A machine of its own: home, configuration, and stand-ins for the commands of the service managers."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EDGEPP_HOME", str(home / "edgepp"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("EDGEPP_TOKEN", raising=False)
    return FakeManager(tmp_path / "bin", monkeypatch)


@pytest.fixture
def linux(fake: FakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeManager:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(systemd, "_BOOTED", tmp_path)
    monkeypatch.setattr(systemd, "_LINGER", tmp_path / "linger")
    fake.answer("show", out=RUNNING)
    return fake


@pytest.fixture
def mac(fake: FakeManager, monkeypatch: pytest.MonkeyPatch) -> FakeManager:
    monkeypatch.setattr(sys, "platform", "darwin")
    fake.answer("print", out=PRINTED)
    fake.answer("bootout", status=3, err="Boot-out failed: 3: No such process")
    return fake


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["service", *arguments])


def answer(*arguments: str) -> Mapping[str, Any]:
    result = run(arguments[0], "--json", *arguments[1:])
    assert result.exception is None, result.exception
    found: Mapping[str, Any] = json.loads(result.output)
    return found


def pair() -> None:
    save_cluster(new_cluster(load_identity()))


def test_a_unit_is_written_enabled_and_started(linux: FakeManager) -> None:
    told = run("install", "serve", "--", "-m", "smollm2-135m", "--lan")
    assert told.exception is None, told.exception
    unit = Path.home() / ".config/systemd/user/edgepp.service"
    assert " serve -m smollm2-135m --lan\n" in unit.read_text()
    assert f"EDGEPP_HOME={Path.home() / 'edgepp'}" in unit.read_text()
    orders = [call.removeprefix("systemctl --user ") for call in linux.calls]
    assert orders[-3:] == ["daemon-reload", "enable edgepp.service", "restart edgepp.service"]
    assert "loginctl enable-linger" in told.output, "lingering is explained"


def test_lingering_is_turned_on_where_it_is_asked_for(linux: FakeManager) -> None:
    assert run("install", "serve", "--linger").exception is None
    assert linux.calls[-1].startswith("loginctl enable-linger ")


def test_a_refused_lingering_is_said_with_the_command_that_helps(linux: FakeManager) -> None:
    linux.answer("enable-linger", status=1, err="Access denied")
    error = run("install", "serve", "--linger").exception
    assert isinstance(error, EdgeppError)
    assert "Access denied" in str(error)
    assert "sudo loginctl enable-linger" in error.hint


def test_the_status_is_what_systemd_says(linux: FakeManager) -> None:
    assert "no service is installed" in run("status").output
    run("install", "serve")
    found = answer("status")
    assert (found["state"], found["pid"], found["restarts"], found["starts_by_itself"]) == ("running", 77, 2, True)
    assert found["lingers"] is False
    linux.answer("show", out=FAILED)
    assert "exit status 1: see `edgepp service logs`" in run("status").output


def test_a_removed_service_leaves_no_file(linux: FakeManager) -> None:
    assert answer("remove")["removed"] is False
    run("install", "serve")
    assert answer("remove")["removed"] is True
    assert "systemctl --user disable --now edgepp.service" in linux.calls
    assert not list((Path.home() / ".config").rglob("edgepp*"))


def test_without_the_users_manager_one_error_says_why(linux: FakeManager) -> None:
    linux.answer("is-system-running", status=1, err="Failed to connect to bus: No medium found")
    error = run("install", "serve").exception
    assert isinstance(error, EdgeppError)
    assert "log in as this user" in error.hint
    assert not (Path.home() / ".config").exists()


def test_without_a_service_manager_one_error_says_so(linux: FakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_BOOTED", Path("/nonexistent"))
    for arguments in (("install", "serve"), ("status",), ("logs",), ("remove",)):
        error = run(*arguments).exception
        assert isinstance(error, EdgeppError)
        assert "neither systemd nor launchd" in str(error)
    assert "ExecStart=" in run("install", "serve", "--print").output
    assert linux.calls == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("join", "--", "7-tango-lemon"), "good for one start"),
        (("join",), "belongs to no cluster"),
        (("serve", "--daemon"), "for macOS"),
    ],
)
def test_what_could_not_start_by_itself_is_refused(
    arguments: tuple[str, ...], problem: str, linux: FakeManager
) -> None:
    error = run("install", *arguments).exception
    assert isinstance(error, UsageError)
    assert problem in str(error)
    assert error.hint
    assert not (Path.home() / ".config").exists()


def test_a_wrong_option_is_refused_as_the_command_itself_would(linux: FakeManager) -> None:
    result = run("install", "serve", "--", "--no-such-option")
    assert result.exit_code == 2
    assert "edgepp serve" in result.output


def test_a_paired_machine_and_one_with_a_token_may_join(linux: FakeManager) -> None:
    pair()
    assert run("install", "join").exception is None
    (Path.home() / "edgepp" / "cluster.json").unlink()
    token = Path.home() / "edgepp" / "token"
    token.write_text("a token")
    token.chmod(0o600)
    assert run("install", "join").exception is None


def test_print_writes_nothing(linux: FakeManager) -> None:
    found = answer("install", "join", "--print")
    assert found["text"].startswith("[Unit]")
    assert not Path(found["file"]).exists()
    assert linux.calls == []


def test_a_relative_folder_becomes_absolute(
    linux: FakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    found = answer("install", "serve", "--print", "--", "-m", "./model")
    assert f" -m {tmp_path / 'model'}\n" in found["text"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_itself_accepts_the_unit(linux: FakeManager, tmp_path: Path) -> None:
    found = answer("install", "serve", "--print", "--", "-m", "a b%n$X\"\\'")
    unit = tmp_path / "edgepp.service"
    unit.write_text(found["text"])
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    newer = ("RestartSteps", "RestartMaxDelaySec")  # before version 254 these are ignored, and a line says so
    said = [line for line in done.stderr.splitlines() if not any(f"Unknown key '{key}'" in line for key in newer)]
    assert (done.returncode, said) == (0, [])


def test_an_agent_is_written_and_bootstrapped(mac: FakeManager) -> None:
    told = run("install", "serve", "--", "--memory", "8GB")
    assert told.exception is None, told.exception
    path = Path.home() / "Library/LaunchAgents/edgepp.plist"
    assert plistlib.loads(path.read_bytes())["ProgramArguments"][-3:] == ["serve", "--memory", "8GB"]
    assert mac.calls[-1] == f"launchctl bootstrap gui/{os.getuid()} {path}"
    assert "local network" in told.output
    found = answer("status")
    assert (found["state"], found["pid"], found["restarts"], found["last_exit_status"]) == ("running", 77, 2, 1)


def test_an_agent_that_launchd_does_not_know_is_stopped(mac: FakeManager) -> None:
    run("install", "serve")
    mac.answer("print", status=113, err="Could not find service")
    assert answer("status")["state"] == "stopped"


def test_without_a_login_at_the_screen_a_daemon_is_proposed(mac: FakeManager) -> None:
    mac.answer("bootstrap", status=125, err="Bootstrap failed: 125: Domain does not support specified action")
    error = run("install", "serve").exception
    assert isinstance(error, EdgeppError)
    assert "--daemon" in error.hint


def test_a_removed_agent_leaves_no_file(mac: FakeManager) -> None:
    run("install", "serve")
    mac.answer("bootout")
    assert answer("remove")["removed"] is True
    assert mac.calls[-1] == f"launchctl bootout gui/{os.getuid()}/edgepp"
    assert not [path for path in (Path.home() / "Library").rglob("*") if path.is_file()]


def test_the_log_of_an_agent_is_shown_from_its_end(mac: FakeManager) -> None:
    command = launchd.Launchd(daemon=False).log_command(5, follow=True)
    assert command == ["tail", "-n", "5", "-F", str(Path.home() / "Library/Logs/edgepp.log")]


@pytest.mark.skipif(os.getuid() != 0, reason="a daemon needs root")
def test_a_daemon_runs_as_the_user_of_sudo(mac: FakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchd, "_DAEMONS", tmp_path / "daemons")
    home = tmp_path / "nobody"

    class Entry:
        pw_uid, pw_gid, pw_name, pw_dir = 65534, 65534, "ann", str(home)

    monkeypatch.setenv("SUDO_UID", "65534")
    monkeypatch.setattr(launchd.pwd, "getpwuid", lambda _: Entry)
    manager = launchd.Launchd(daemon=True, daemons=tmp_path / "daemons")
    manager.install(ui._definition("serve", ()))
    read = plistlib.loads((tmp_path / "daemons" / "edgepp.plist").read_bytes())
    assert (read["UserName"], read["EnvironmentVariables"]["HOME"]) == ("ann", str(home))
    assert (home / "Library/Logs/edgepp.log").stat().st_uid == 65534
    assert mac.calls[-1] == f"launchctl bootstrap system {tmp_path / 'daemons' / 'edgepp.plist'}"
    mac.answer("bootout")
    assert manager.remove()
    assert mac.calls[-1] == "launchctl bootout system/edgepp"


def test_a_daemon_for_root_or_without_root_is_refused(mac: FakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    error = run("install", "serve", "--daemon").exception
    assert isinstance(error, UsageError)
    assert "sudo" in error.hint
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    error = run("install", "serve", "--daemon").exception
    assert isinstance(error, UsageError)
    assert "as that user" in error.hint


def test_the_property_list_of_a_mac_is_printed(mac: FakeManager) -> None:
    read = plistlib.loads(run("install", "join", "--print", "--", "--threads", "2").output.encode())
    assert read["ProgramArguments"][-3:] == ["join", "--threads", "2"]
    assert mac.calls == []
