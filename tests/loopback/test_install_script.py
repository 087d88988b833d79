"""install.sh without a network: what it refuses, and a whole installation of a tiny wheel with the Python that is here.

`make install-test` has the real wheel in a bare Debian without Python.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "install.sh"
STUB = "edgepp-9.9-py3-none-any.whl"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel whose command prints a version, and nothing else."""
    path = tmp_path_factory.mktemp("wheel") / STUB
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("edgepp.py", "def main():\n    print('edgepp 9.9')\n")
        info = "edgepp-9.9.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: edgepp\nVersion: 9.9\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", "[console_scripts]\nedgepp = edgepp:main\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A home with an installation, which a test leaves as it was, or upgrades."""
    home = tmp_path_factory.mktemp("installed") / "home"
    home.mkdir()
    done = install(home, wheel)
    assert done.returncode == 0, done.stderr
    return home


def run(home: Path, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "PIP_NO_INDEX": "1", **env},  # no shims that write into HOME
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def install(home: Path, wheel: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run(home, "--from", wheel, "--python", sys.executable, *more)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "zsh"])
def test_every_shell_reads_the_script(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n", str(SCRIPT)], check=True)


def test_a_dry_run_changes_nothing(home: Path, wheel: Path) -> None:
    done = install(home, wheel, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "pip install" in done.stdout
    assert done.stdout.endswith("nothing was changed\n")
    assert files(home) == []


def test_a_dry_run_without_a_fitting_python_names_what_uv_would_bring(home: Path, wheel: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "cut", "dirname", "basename", "getconf", "uname", "readlink", "sha256sum", "curl"):
        if (found := shutil.which(name)) is not None:
            (tools / name).symlink_to(found)
    done = run(home, "--from", wheel, "--dry-run", PATH=str(tools))
    assert done.returncode == 0, done.stderr
    assert "downloading https://github.com/astral-sh/uv/releases/download/" in done.stdout
    assert "--managed-python" in done.stdout
    assert files(home) == []


def test_an_installation_works_and_leaves_no_trace(home: Path, wheel: Path) -> None:
    (home / ".local").mkdir()
    before = files(home)
    done = install(home, wheel, "--sha256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert done.returncode == 0, done.stderr
    command = home / ".local" / "bin" / "edgepp"
    assert subprocess.run([command], check=True, capture_output=True, text=True).stdout == "edgepp 9.9\n"
    undo = home / ".local/share/edgepp-install/install.sh"
    assert f"to undo: sh {undo} --uninstall" in done.stdout
    config = home / ".config" / "edgepp"
    config.mkdir(parents=True)
    kept = subprocess.run(
        ["sh", undo, "--uninstall"], capture_output=True, text=True, env={**os.environ, "HOME": str(home)}
    )
    assert kept.returncode == 0, kept.stderr
    assert f"kept: {config}" in kept.stdout or sys.platform == "darwin"
    config.rmdir()
    config.parent.rmdir()
    assert files(home) == before


def test_a_failed_installation_leaves_no_trace(home: Path, wheel: Path, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text('#!/bin/sh\n[ "$1" = -c ]\n')  # fits, and then cannot make an environment
    broken.chmod(0o755)
    done = run(home, "--from", wheel, "--python", broken)
    assert done.returncode != 0
    assert "everything is as it was before" in done.stderr
    assert files(home) == []


def test_an_installation_that_fails_at_its_end_leaves_no_trace(home: Path, wheel: Path, tmp_path: Path) -> None:
    done = run(home, "--from", wheel, "--python", sys.executable, PATH=f"{failing(tmp_path, 'cp')}:/usr/bin:/bin")
    assert done.returncode != 0
    assert "everything is as it was before" in done.stderr
    assert files(home) == []


@pytest.mark.parametrize("program", ["ln", "cp"])
def test_an_upgrade_that_fails_at_its_end_leaves_the_former_installation(
    program: str, installed: Path, wheel: Path, tmp_path: Path
) -> None:
    folder = installed / ".local/share/edgepp-install"
    (folder / "venv" / "former").touch()
    before = files(installed)
    done = run(
        installed, "--from", wheel, "--python", sys.executable, PATH=f"{failing(tmp_path, program)}:/usr/bin:/bin"
    )
    assert done.returncode != 0
    assert "everything is as it was before" in done.stderr
    assert files(installed) == before
    subprocess.run([installed / ".local" / "bin" / "edgepp"], check=True)


def test_the_installed_script_upgrades(installed: Path, wheel: Path) -> None:
    copy = installed / ".local/share/edgepp-install/install.sh"
    done = subprocess.run(
        ["sh", copy, "--from", wheel, "--python", sys.executable],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(installed), "PIP_NO_INDEX": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert copy.read_bytes() == SCRIPT.read_bytes()


def failing(tmp_path: Path, program: str) -> Path:
    """A folder with a program of this name that only fails."""
    folder = tmp_path / "failing"
    folder.mkdir()
    (folder / program).write_text("#!/bin/sh\nexit 1\n")
    (folder / program).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--no-such-option",), "unknown option"),
        (("--from",), "needs a value"),
        (("--from", "/nowhere/edgepp.whl"), "there is no wheel"),
        (("--from", "/nowhere"), "there is no wheel or folder"),
        (("--from", "https://host.example/edgepp-1-py3-none-any.whl"), "could be anything"),
        (("--python", "/nowhere/python"), "is no Python 3.11 to 3.13"),
        (("--uninstall",), "is not installed"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments: tuple[str, ...], problem: str, home: Path) -> None:
    done = run(home, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert problem in done.stderr
    assert files(home) == []


def test_a_wheel_that_was_changed_is_refused(home: Path, wheel: Path) -> None:
    done = install(home, wheel, "--sha256", "0" * 64)
    assert done.returncode == 1
    assert "is not what was meant" in done.stderr
    assert files(home) == []


def test_uv_that_was_changed_is_refused(home: Path, wheel: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    names = (
        "sh",
        "cat",
        "cut",
        "dirname",
        "basename",
        "getconf",
        "uname",
        "readlink",
        "sha256sum",
        "mkdir",
        "rm",
        "rmdir",
    )
    for name in names:
        if (found := shutil.which(name)) is not None:
            (tools / name).symlink_to(found)
    curl = tools / "curl"
    curl.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho changed >"$2"\n')
    curl.chmod(0o755)
    done = run(home, "--from", wheel, PATH=str(tools))
    assert done.returncode == 1
    assert "uv.tar.gz is not what was meant" in done.stderr
    assert files(home) == []


def test_what_is_not_ours_is_left_alone(home: Path, wheel: Path) -> None:
    (home / ".local" / "bin").mkdir(parents=True)
    link = home / ".local" / "bin" / "edgepp"
    link.write_text("mine")
    assert "not of this script" in install(home, wheel).stderr
    link.unlink()
    (home / ".local/share/edgepp-install").mkdir(parents=True)
    (home / ".local/share/edgepp-install/mine").touch()
    before = files(home)
    assert "not of this script" in install(home, wheel).stderr
    assert "is not installed" in run(home, "--uninstall").stderr
    assert files(home) == before
