"""OpenSSH's server on hosts of a test, each with a home of its own, and the configuration that reaches them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.netns.net import Host
from tests.waiting import eventually

SSHD = "/usr/sbin/sshd"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a host, if anything."""

    path: str | None = None
    """The only folder with programs."""
    key: bool = True
    """Whether the client's key is accepted."""
    home_mb: int | None = None
    """Size of the disk under its home."""


class SshHosts:
    """Servers and a client's configuration in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config"
        self.config.write_text("")
        self._keygen("client")
        self._keygen("host")

    @contextmanager
    def served(self, host: Host, fault: Fault = Fault()) -> Iterator[Path]:
        """A server on ``host`` for as long as the block; the home of who logs in."""
        home = self.folder / f"home-{host.name}"
        home.mkdir()
        if fault.home_mb is not None:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={fault.home_mb}m", "edgepp-test", str(home)], check=True
            )
        try:
            self._start(host, fault, home)
            yield home
        finally:
            if fault.home_mb is not None:
                subprocess.run(["umount", "--lazy", str(home)], check=True)

    def _start(self, host: Host, fault: Fault, home: Path) -> None:
        keys = self.folder / f"keys-{host.name}"
        keys.write_text((self.folder / "client.pub").read_text() if fault.key else "")
        environment = f"HOME={home}" + (f" PATH={fault.path}" if fault.path else "")
        config = self.folder / f"sshd-{host.name}"
        config.write_text(
            f"ListenAddress {host.address}\nHostKey {self.folder / 'host'}\nAuthorizedKeysFile {keys}\nStrictModes no\n"
            "UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            f"PidFile none\nSetEnv {environment}\nSubsystem sftp internal-sftp\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        with host.log().open("w") as log:
            host.popen(SSHD, "-D", "-e", "-f", str(config), stdout=subprocess.DEVNULL, stderr=log)
        with self.config.open("a") as file:
            file.write(
                f"Host {host.name}\n  HostName {host.address}\n  User root\n  IdentityFile {self.folder / 'client'}\n"
                f"  IdentitiesOnly yes\n  StrictHostKeyChecking accept-new\n  UserKnownHostsFile {self.folder}/known\n"
            )
        probe = f"exec 3<>/dev/tcp/{host.address}/22"
        eventually(f"sshd on {host.name}", lambda: host.run("bash", "-c", probe).returncode == 0)

    def _keygen(self, name: str) -> None:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.folder / name)]
        subprocess.run(command, check=True)


def unavailable() -> str | None:
    """Why no server can be run here; None when one can."""
    if not Path(SSHD).exists() or shutil.which("ssh-keygen") is None:
        return "there is no OpenSSH server"
    return None


def programs(folder: Path, *names: str) -> str:
    """A folder with these programs alone."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    return str(folder)
