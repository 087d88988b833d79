"""The check of install.sh inside its namespaces: a server on loopback, a user in a bare root, and lists of files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.bare.root import ROOT, contents, tell

USER = "ann"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing of each request."""


class Machine:
    """The bare root with one user, as that user sees it."""

    def __init__(self, root: Path, served: Path, server: str) -> None:
        self.root = root
        self._env = {
            "HOME": f"/home/{USER}",
            "PATH": f"/home/{USER}/.local/bin:/usr/local/bin:/usr/bin:/bin",
            "EDGEPP_UV_URL": f"{server}/uv.tar.gz",
            "EDGEPP_UV_SHA256": _digest(served / "uv.tar.gz"),
            "UV_PYTHON_DOWNLOADS_JSON_URL": f"{server}/downloads.json",
            "UV_DEFAULT_INDEX": f"{server}/simple",
        }
        subprocess.run(["chroot", str(root), "useradd", "--create-home", USER], check=True)
        subprocess.run(["mount", "-t", "proc", "proc", str(root / "proc")], check=True)
        (root / "install.sh").write_bytes((ROOT / "install.sh").read_bytes())

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the user."""
        return subprocess.run(
            [shutil.which("chroot") or "chroot", f"--userspec={USER}:{USER}", str(self.root), *command],
            env={**self._env, **env},
            cwd="/",
            capture_output=True,
            text=True,
        )

    def expect(self, status: int, *command: str, **env: str) -> str:
        """The output of a command that ends with ``status``."""
        done = self.run(*command, **env)
        assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(machine: Machine, address: str, sha256: str) -> None:
    """Install, use, install again and remove; then what must fail leaves nothing."""
    install = ("sh", "/install.sh", "--from", address)
    assert machine.run("python3", "--version").returncode == 127, "the root has a Python"
    before = contents(machine.root)
    tell(machine.expect(0, *install, "--sha256", sha256, "--dry-run"))
    assert contents(machine.root) == before, "a dry run changed something"
    tell(machine.expect(0, *install, "--sha256", sha256))
    version = json.loads(machine.expect(0, "edgepp", "version", "--json"))
    tell(f"installed: {version}")
    assert version["executable"].startswith(f"/home/{USER}/.local/share/edgepp-install/")
    plan = json.loads(machine.expect(0, "edgepp", "plan", "llama-3.2-1b-4bit", "--node", "mem=8GB,hw=m4", "--json"))
    assert plan, "a command that works without a network"
    machine.expect(0, *install, "--sha256", sha256)
    tell("installed once more over it")
    tell(machine.expect(0, "sh", f"/home/{USER}/.local/share/edgepp-install/install.sh", "--uninstall", "--purge"))
    _same(before, machine)
    said = machine.expect(1, *install, "--sha256", "0" * 64)
    assert "is not what was meant" in said
    _same(before, machine)
    said = machine.expect(1, *install, "--sha256", sha256, EDGEPP_UV_SHA256="0" * 64)
    assert "uv.tar.gz is not what was meant" in said
    _same(before, machine)
    assert machine.run(*install, "--sha256", sha256, UV_DEFAULT_INDEX="http://127.0.0.1:1/simple").returncode != 0
    _same(before, machine)
    tell("a changed wheel, a changed uv and a missing package are refused, and leave nothing")


def _same(before: dict[str, tuple[int, int, str]], machine: Machine) -> None:
    after = contents(machine.root)
    different = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    assert not different, f"left behind or changed: {different[:20]}"
    tell(f"the {len(before):,} paths of the machine are as they were")


def main() -> None:
    """Run the check: root, served folder, and the name of edgepp's wheel are the arguments."""
    root, served, wheel = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    builds = served / "downloads.json"
    builds.write_text(builds.read_text().replace("SERVER", address))
    os.umask(0o022)
    check(Machine(root, served, address), f"{address}/{wheel}", _digest(served / wheel))
    tell("install.sh: passed")


if __name__ == "__main__":
    main()
