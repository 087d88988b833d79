"""The home lab on three hosts in network namespaces of this machine, over real SSH: `make homelab-here`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from edgepp.model.cache import cache_dir
from tests.homelab.lab import own_wheel
from tests.netns import net, sshd
from tests.netns.sshd import SshHosts

NAMES = ("studio", "laptop", "pi")


def main() -> int:
    """Run ``tests.homelab`` from a fourth host; its exit status."""
    parser = argparse.ArgumentParser(prog="tests.homelab.here", description=__doc__)
    parser.add_argument("--wheels", required=True, help="folder with the wheels of all dependencies")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if (reason := net.unavailable() or sshd.unavailable()) is not None:
        sys.exit(f"no hosts can be made here: {reason}")
    with tempfile.TemporaryDirectory(prefix="edgepp-lab-") as folder, net.Lan(ipv6=False) as lan, ExitStack() as stack:
        servers = SshHosts(Path(folder))
        client = lan.host("client")
        for name in NAMES:
            stack.enter_context(servers.served(lan.host(name)))
        own = own_wheel(Path(folder) / "own")
        words = ["--ssh-config", str(servers.config), "--wheels", options.wheels, "--own-wheel", str(own)]
        words += ["--out", options.out, "--cache", str(cache_dir()), *NAMES]
        lab = client.popen(sys.executable, "-m", "tests.homelab", *words)
        while True:
            try:
                return lab.wait()
            except KeyboardInterrupt:  # also where only this process was told: the lab cleans up first
                lab.send_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
