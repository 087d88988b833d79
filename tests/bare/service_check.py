"""``python -m tests.bare.service_check`` (``make service-test``): the service under a real systemd as process 1.

A container of systemd-nspawn has the root of a Debian with systemd, and this machine's Python and edgepp by bind
mounts. A user without a login has a lingering service manager there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bare.root import ROOT, contents, debian, fresh_copy, require, tell

MACHINE = "edgepp-service-check"
USER = "ann"
WAIT_S = 90.0
PACKAGES = ("systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "passwd", "util-linux")

_HOLDER = """
import subprocess, time
from edgepp.host_system.sleep_inhibitor import SleepInhibitor

lock = SleepInhibitor()
for _ in range(30):
    lock.update(working=True)
    time.sleep(0.1)
print(lock.state)
print(subprocess.run(["systemd-inhibit", "--list", "--no-pager"], capture_output=True, text=True).stdout)
lock.release()
print(lock.state)
"""


class Container:
    """A booted Debian."""

    def __init__(self, root: Path) -> None:
        self.root = root
        subprocess.run(["chroot", str(root), "useradd", "--create-home", "--shell", "/bin/sh", USER], check=True)
        bound = {str(ROOT), *_python_folders(), str(Path(sys.executable).parent.parent.resolve())}
        binds = [f"--bind-ro={folder}" for folder in sorted(bound)]
        (root / "root").chmod(0o711)  # the user may pass through it to a Python that lies below
        command = [
            "systemd-nspawn",
            "--quiet",
            "--boot",
            "--private-network",
            f"--machine={MACHINE}",
            "--register=no",
            "--keep-unit",
        ]
        self.process = subprocess.Popen(
            [*command, f"--directory={root}", "--console=pipe", *binds],
            stdin=subprocess.DEVNULL,
            stdout=(ROOT / "build" / "bare" / "console.log").open("w"),
            stderr=subprocess.STDOUT,
        )

    def root_run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside."""
        enter = ["nsenter", "--target", str(self._init), "--all", "--root", "--wdns=/"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin:/sbin"})

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, with the user's service manager."""
        uid = self.root_run("id", "-u", USER).stdout.strip()
        env = [
            f"XDG_RUNTIME_DIR=/run/user/{uid}",
            f"HOME=/home/{USER}",
            f"USER={USER}",
            "PATH=/usr/bin:/bin",
            "LANG=C.UTF-8",
        ]
        return self.root_run("runuser", "-u", USER, "--", "env", *env, *command)

    def edgepp(self, *arguments: str) -> dict[str, Any]:
        """The JSON that an `edgepp` command of the user prints."""
        done = self.run(str(ROOT / ".venv/bin/edgepp"), *arguments)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    @property
    def _init(self) -> int:
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def wait(self, what: str, ready: Any) -> None:
        """Wait until ``ready`` returns True."""
        until_s = time.monotonic() + WAIT_S
        while not ready():
            if self.process.poll() is not None or time.monotonic() > until_s:
                raise AssertionError(f"not so: {what}")
            time.sleep(0.3)
        tell(f"ok: {what}")

    def close(self) -> None:
        """End the container."""
        self.process.terminate()
        self.process.wait()


def _python_folders() -> set[str]:
    """Folders of the Python of this environment."""
    base = Path(sys.base_prefix).resolve()
    return {str(base)} if base != Path("/usr") else {"/usr/lib/python3", f"/usr/lib/python3.{sys.version_info[1]}"}


def check(container: Container) -> None:
    """Install, kill, restart, stop and remove the service."""
    container.wait(
        "systemd runs as process 1",
        lambda: "running" in _system_state(container) or "degraded" in _system_state(container),
    )
    refused = container.run(str(ROOT / ".venv/bin/edgepp"), "service", "install", "serve")
    assert refused.returncode == 1, refused
    tell(f"without a login: {refused.stderr.strip()}")
    container.root_run("loginctl", "enable-linger", USER)
    container.wait(
        "the user's manager runs",
        lambda: container.run("systemctl", "--user", "is-system-running").stdout.strip() in ("running", "degraded"),
    )
    home = container.root / "home" / USER
    before = contents(home)
    installed = container.edgepp(
        "service", "install", "--json", "serve", "--", "--no-stage", "--http", "off", "--json", "-m", str(_model())
    )
    tell(f"installed: {installed}")

    def status() -> dict[str, Any]:
        return container.edgepp("service", "status", "--json")

    container.wait(
        "the coordinator answers",
        lambda: "coordinator" in container.run(str(ROOT / ".venv/bin/edgepp"), "status", "--json").stdout,
    )
    first = status()
    assert first["state"] == "running", first
    assert first["lingers"], first
    container.root_run("sh", "-c", f"kill -9 {first['pid']}")
    container.wait(
        "it is started again after kill -9", lambda: status()["state"] == "running" and status()["pid"] != first["pid"]
    )
    assert status()["restarts"] == 1, status()
    logs = container.run(str(ROOT / ".venv/bin/edgepp"), "service", "logs", "-n", "50").stdout
    tell(f"logs have {len(logs.splitlines())} lines, the last: {logs.splitlines()[-1][:150] if logs else ''}")
    stopped_s = time.monotonic()
    container.run("systemctl", "--user", "stop", "edgepp.service")
    tell(f"stopped in {time.monotonic() - stopped_s:.1f} s")
    assert status()["state"] == "stopped", status()
    container.run("systemctl", "--user", "start", "edgepp.service")
    container.wait("it runs again", lambda: status()["state"] == "running")
    _check_inhibitor(container)
    assert container.edgepp("service", "remove", "--json")["removed"]
    assert not status()["installed"]
    left = sorted(set(contents(home)) - set(before))
    tell(f"left in the home folder: {left}")
    assert not [path for path in left if "systemd/user/" in path and path.endswith(".service")], left


def _check_inhibitor(container: Container) -> None:
    """Hold and release logind's lock by the user's process."""
    python = str(ROOT / ".venv/bin/python")
    for who, done in (
        ("root", container.root_run(python, "-c", _HOLDER)),
        (USER, container.run(python, "-c", _HOLDER)),
    ):
        assert done.returncode == 0, done
        held, *listed, after = done.stdout.split("\n")[:-1]
        tell(f"sleep of the machine, asked by {who}: {held}, then {after}")
        if who == "root":  # a user without a session needs a policy daemon, which this Debian has not
            assert (held, after) == ("held", "released"), done
            assert any("edgepp" in line and "sleep:idle" in line for line in listed), listed


def _system_state(container: Container) -> str:
    try:
        return container.root_run("systemctl", "is-system-running").stdout
    except (OSError, ValueError):  # it has not started its first process
        return ""


def _model() -> Path:
    """A tiny checkpoint where the container sees it."""
    from edgepp.model.random_checkpoint import TINY, make_checkpoint

    folder = ROOT / "build" / "bare" / "tiny"
    if not (folder / "config.json").exists():
        make_checkpoint(folder, TINY)
        subprocess.run(["chmod", "-R", "go+rX", str(folder)], check=True)
    return folder


def main() -> None:
    """Run the check."""
    require("debootstrap", "systemd-nspawn", "nsenter", "chroot")
    _model()
    container = Container(fresh_copy(debian("systemd", PACKAGES)))
    try:
        check(container)
    finally:
        container.close()
    tell("service: passed")


if __name__ == "__main__":
    os.umask(0o022)
    main()
