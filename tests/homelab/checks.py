"""What a machine must have before anything is copied to it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.homelab.ssh import HostError, Remote

PORT = 5700
MIN_DISK_MB, MIN_MEMORY_MB = 2500, 1500
MAX_CLOCK_S = 30.0

_SCRIPT = r"""
echo "system=$(uname -s) $(uname -m)"
echo "home=$HOME"
echo "disk_mb=$(df -Pk "$HOME" | awk 'NR == 2 { print int($4 / 1024) }')"
if [ -r /proc/meminfo ]; then awk '/^MemAvailable/ { print "memory_mb=" int($2 / 1024) }' /proc/meminfo
else echo "memory_mb=$(($(sysctl -n hw.memsize) / 1048576))"; fi
echo "clock=$(date +%s)"
PATH="$PATH:$HOME/.local/bin:/opt/homebrew/bin:/usr/local/bin"
for python in python3.13 python3.12 python3.11 python3; do
  found=$(command -v $python) || continue
  "$found" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null ||
    continue
  echo "python=$found"
  for port in PORTS; do
    "$found" -c "import socket; socket.create_server(('', $port)).close()" 2>/dev/null || echo "taken=$port"
  done
  break
done
"""


@dataclass(frozen=True)
class Facts:
    """What a machine said of itself."""

    system: str
    home: str
    disk_mb: int
    memory_mb: int
    clock_off_s: float
    python: str
    taken: str


def check(remote: Remote, *, needs_port: bool) -> Facts:
    """Look at a machine.

    Raises:
        HostError: it cannot take part; in one line, with the next step.
    """
    facts = _facts(remote)
    name = remote.name
    if not facts.python:
        raise HostError(name, "no Python 3.11 to 3.13 with venv", "install one, such as `brew install python@3.12`")
    if facts.disk_mb < MIN_DISK_MB:
        raise HostError(name, f"{facts.disk_mb} MB of disk are free, {MIN_DISK_MB} are needed", "free some space")
    if facts.memory_mb < MIN_MEMORY_MB:
        raise HostError(name, f"{facts.memory_mb} MB of memory are free, {MIN_MEMORY_MB} are needed", "close programs")
    if abs(facts.clock_off_s) > MAX_CLOCK_S:
        raise HostError(name, f"its clock is {facts.clock_off_s:+.0f} s off", "turn on network time")
    if needs_port and facts.taken:
        raise HostError(name, f"port {facts.taken} is in use", "stop the program there, such as another `edgepp serve`")
    return facts


def _facts(remote: Remote) -> Facts:
    began_s = time.time()
    script = _SCRIPT.replace("PORTS", f"{PORT} {PORT + 1}")
    lines = remote.run(script, 60.0).splitlines()
    told = dict(line.partition("=")[::2] for line in lines if "=" in line)
    now_s = (began_s + time.time()) / 2
    try:
        return Facts(
            told["system"], told["home"], int(told["disk_mb"]), int(told["memory_mb"]), int(told["clock"]) - now_s,
            told.get("python", ""), told.get("taken", ""),
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise HostError(remote.name, f"its answer cannot be read: {error}", "look whether its shell greets") from error
