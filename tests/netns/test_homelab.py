"""`make homelab` against real SSH servers: its look at hosts, one of them sound and four of them broken."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.netns import sshd
from tests.netns.net import Lan
from tests.netns.sshd import Fault, SshHosts, programs
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(sshd.unavailable() is not None, reason=str(sshd.unavailable()))
LISTEN = "import socket, time; s = socket.create_server(('', 5700)); print('ready', flush=True); time.sleep(600)"


def test_each_broken_host_gets_one_line_and_a_next_step(lan: Lan, tmp_path: Path) -> None:
    few = programs(tmp_path / "few", "sh", "uname", "df", "awk", "date", "cat")
    faults = {
        "sound": Fault(), "nopython": Fault(path=few), "nokey": Fault(key=False), "full": Fault(home_mb=50),
    }  # fmt: skip
    client, servers = lan.host("client"), SshHosts(tmp_path)
    with ExitStack() as stack:
        hosts = {name: lan.host(name) for name in faults}
        for name, fault in faults.items():
            stack.enter_context(servers.served(hosts[name], fault))
        command = (sys.executable, "-m", "tests.homelab", "--check-only", "--ssh-config", str(servers.config))
        done = client.run(*command, *faults)
        assert done.returncode == 1
        told = {
            line.split(": ")[0].split()[-1]: line for line in done.stderr.splitlines() if "ok  " in line or "!!" in line
        }
        assert "ok  sound: Linux" in told["sound"]
        assert "no Python 3.11 to 3.13 with venv" in told["nopython"]
        assert "ssh: no key of yours is accepted" in told["nokey"]
        assert "MB of disk are free, 2500 are needed" in told["full"]
        assert done.stderr.count("→") == 3

        blocker = hosts["sound"].popen(sys.executable, "-c", LISTEN, stdout=subprocess.PIPE)
        assert blocker.stdout is not None
        eventually("a listener", blocker.stdout.readline)
        done = client.run(*command, "sound")
        assert done.returncode == 1
        assert "sound: port 5700 is in use" in done.stderr
