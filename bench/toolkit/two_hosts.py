"""Two machines as network namespaces with a delayed cable, and clusters of real `edgepp serve` and `edgepp join`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.toolkit.cable import FAR, NEAR, PORT, inside, namespace, run_command
from bench.toolkit.packet_relay import relay
from edgepp.child_process import python_command
from edgepp.errors import EdgeppError

_PORT = 5700
_WAIT_S = 180.0
_QUIET_S = 4.0
"""Seconds for which a state must be unchanged to count as settled, since a plan for members may follow."""
_STOP_S = 30.0
Join = tuple[str, Sequence[str]]
"""``near`` or ``far``, and options of `edgepp join` there."""


@dataclass
class TwoHosts:
    """Both machines; each cluster on them is new."""

    names: dict[str, str]
    """Namespace of ``near`` and of ``far``."""
    model: str
    threads: int
    folder: Path
    _made: int = 0

    @contextmanager
    def cluster(self, serve: Sequence[str], joins: Sequence[Join], *, far: bool = True) -> Iterator[TwoHostCluster]:
        """`edgepp serve` on the near machine with these options, and ``joins``; with ``far`` a join there too."""
        self._made += 1
        with ExitStack() as stack:
            cluster = TwoHostCluster(self, self._made)
            options = ("-m", self.model, "--listen", f"{NEAR}:{_PORT}", "--http", "off", "--speculate", "off", *serve)
            stack.enter_context(cluster.running("near", "serve", *options))
            for host, more in (*joins, *((("far", ()),) if far else ())):
                name = f"{host}-joined"
                code = json.loads(cluster.output("near", "invite", "--json"))["code"]
                stack.enter_context(cluster.running(host, "join", code, "--peer", f"{NEAR}:{_PORT}", *more, home=name))
            cluster.members = len(joins) + far + ("--no-stage" not in serve)
            yield cluster


@dataclass
class TwoHostCluster:
    """A cluster under way."""

    hosts: TwoHosts
    number: int
    members: int = 0

    @contextmanager
    def running(self, host: str, *command: str, home: str = "serve") -> Iterator[None]:
        """Run a command until the block ends; it has printed that it listens, or has joined."""
        log = self.hosts.folder / f"{self.number}-{home}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*self._command(host), *command, "--threads", str(self.hosts.threads), "--json"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment(home),
                process_group=0,
            )
        try:
            until_s = time.monotonic() + _WAIT_S
            while not any(f'"event": "{event}"' in log.read_text() for event in ("listening", "joined")):
                if process.poll() is not None or time.monotonic() > until_s:
                    raise EdgeppError(f"edgepp {command[0]} did not start: {log.read_text()[-500:]}")
                time.sleep(0.2)
            yield
        finally:
            for _ in range(2):  # the first asks others to take the layers, the second ends at once
                process.send_signal(signal.SIGINT)
                time.sleep(0.3)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def output(self, host: str, *command: str) -> str:
        """Standard output of a command to its end."""
        done = subprocess.run(
            [*self._command(host), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=self._environment("serve"),
        )
        if done.returncode:
            raise EdgeppError(f"edgepp {command[0]} failed: {done.stderr[-500:]}")
        return done.stdout

    def settled(self) -> dict[str, Any]:
        """The cluster's state once all members are there, sums are measured where wanted, and nothing changes."""
        until_s, since_s = time.monotonic() + _WAIT_S, time.monotonic()
        last: object = None
        while time.monotonic() < until_s:
            status: dict[str, Any] = json.loads(self.output("near", "status", "--json"))
            present = [node for node in status["nodes"] if node["state"] in ("ready", "joined")]
            wanted = status["policy"] == "speed" and len(present) > 1
            measured = not wanted or any(pair["latency_s"] is not None for pair in status["sums"])
            seen = (status["plan_version"], status["state"], status["moved"])
            if seen != last or len(present) < self.members or status["state"] != "ready" or not measured:
                last, since_s = seen, time.monotonic()
            elif status["moved"] and time.monotonic() - since_s >= _QUIET_S:
                return status
            time.sleep(0.5)
        raise EdgeppError(f"the cluster is not ready: {status['state']}, {status['reason']}, sums {status['sums']}")

    def ask(self, turn: int, prompt_tokens: int, generate: int) -> dict[str, Any]:
        """One answer to a prompt of about ``prompt_tokens`` tokens whose beginning no earlier prompt has."""
        text = f"{turn} " + " ".join(chr(97 + (7 * turn + n) % 26) for n in range(max(1, prompt_tokens // 2 - 1)))
        how = ("--raw", "-p", text, "-n", str(generate), "--ignore-eos", "--temperature", "0", "--json")
        answer: dict[str, Any] = json.loads(self.output("near", "chat", *how))
        return answer

    def _command(self, host: str) -> list[str]:
        return [*inside(self.hosts.names[host]), *python_command("edgepp")]

    def _environment(self, home: str) -> dict[str, str]:
        folder = self.hosts.folder / f"{self.number}-{home}"
        return {**os.environ, "EDGEPP_HOME": str(folder), "EDGEPP_NAME": home}


@contextmanager
def two_hosts(delay_ms: float, discipline: Sequence[str], model: str, threads: int) -> Iterator[TwoHosts]:
    """Both machines, with a cable that delays each packet and has ``discipline`` (of tc) at each end."""
    folder = Path(tempfile.mkdtemp(prefix="edgepp-hosts-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        near, far = (stack.enter_context(namespace(f"edgepp{os.getpid()}-{end}")) for end in ("near", "far"))
        stack.enter_context(relay(near, far, delay_ms))
        for name, address in ((near, NEAR), (far, FAR)):
            run_command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", PORT)
            run_command("ip", "-n", name, "link", "set", PORT, "up")
            run_command(*inside(name), "tc", "qdisc", "replace", "dev", PORT, "root", *discipline)
        yield TwoHosts({"near": near, "far": far}, model, threads, folder)
