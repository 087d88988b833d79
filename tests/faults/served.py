"""A cluster of three nodes on loopback, its streams, and what its processes hold open."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgepp.coordinator.client import RemoteAnswer, connect_coordinator
from edgepp.engine.request import GenerateOptions
from edgepp.engine.timing import Recovery
from edgepp.errors import EdgeppError
from edgepp.model.text.conversation import Prompt
from edgepp.wire.address import Address
from tests.faults.oracle import ENDS_S, Footprint, Outcome, outcome, settles
from tests.faults.questions import Questions
from tests.waiting import PATIENCE_S, eventually

NAMES = ("one", "two", "three")
_NODE = Path(__file__).with_name("faulty_node.py")
_SLACK = 1.25
"""How much larger the kept beginnings of prompts may be, which depend on the order in which answers ended."""
Status = dict[str, Any]


class Member:
    """One `edgepp serve` or `edgepp join` with a configuration of its own, in a process that can be ended and begun."""

    def __init__(self, folder: Path, name: str, *command: str, **env: str) -> None:
        self.name, self._command = name, command
        self.home = folder / name
        self.home.mkdir(exist_ok=True)
        self._env = os.environ | {"EDGEPP_HOME": str(self.home), "EDGEPP_NAME": name} | env
        self.log = folder / f"{name}.log"
        self.start()

    def start(self) -> None:
        """Start the process."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(_NODE), *self._command, "--threads", "1", "--json"],
                env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def said(self) -> list[dict[str, Any]]:
        """Its events so far."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    def expect(self, event: str, number: int = 0) -> dict[str, Any]:
        """Wait for the event of a kind that has this number, counted from 0."""

        def look() -> list[dict[str, Any]]:
            found = [one for one in self.said if one["event"] == event]
            assert self.process.poll() is None or len(found) > number, self.log.read_text()[-2000:]
            return found[number:]

        return eventually(f"event '{event}' of {self.name}", look)[0]

    def misbehave(self, fault: str) -> None:
        """Let its stage process do what ``faulty_stage`` says of ``fault``."""
        new = self.home / "fault.new"
        new.write_text(fault)
        new.rename(self.home / "fault")

    @property
    def family(self) -> list[psutil.Process]:
        """The node's process and all below it."""
        with suppress(psutil.NoSuchProcess):
            node = psutil.Process(self.process.pid)
            return [node, *node.children(recursive=True)]
        return []

    def signal(self, number: int) -> None:
        """Send a signal to the node and all below it."""
        for process in self.family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def close(self) -> None:
        """End the process, which ends its stages."""
        started = self.family
        self.signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
            for process in alive:
                process.kill()
        assert not alive, f"outlived their node: {alive}"


class Stream(threading.Thread):
    """A question to the cluster over a connection of its own, read in a thread; ``outcome`` is what it comes to."""

    def __init__(self, prompt: Prompt, options: GenerateOptions) -> None:
        super().__init__(name="stream", daemon=True)
        self._prompt, self._options = prompt, options
        self._answer: RemoteAnswer | None = None
        self.outcome = Outcome()
        self.start()

    def run(self) -> None:
        """Read the answer to its end."""
        self.outcome = outcome(self._read)

    @property
    def tokens(self) -> int:
        """Number of tokens so far."""
        return len(self._answer.token_ids) if self._answer is not None else 0

    @property
    def recoveries(self) -> list[Recovery]:
        """The losses that the answer survived, once it has ended."""
        return self._answer.timing.recoveries if self._answer is not None else []

    def reaches(self, tokens: int) -> None:
        """Wait until the answer has so many tokens, or has ended."""
        eventually(f"{tokens} tokens", lambda: self.tokens >= tokens or not self.is_alive())

    def result(self) -> Outcome:
        """Wait for the end of the answer."""
        self.join(PATIENCE_S)
        assert not self.is_alive(), f"an answer hangs after {self.tokens} tokens"
        return self.outcome

    def _read(self, tokens: list[int]) -> None:
        with connect_coordinator() as client:
            self._answer = client.ask(self._prompt, self._options)
            try:
                for _ in self._answer:
                    continue
            finally:
                tokens += self._answer.token_ids


def all_right(streams: Mapping[str, Stream], questions: Questions, since_s: float) -> None:
    """Fail unless each stream of a question comes to the right tokens, in time after the fault at ``since_s``."""
    for name, stream in streams.items():
        result = stream.result()
        result.is_right(questions.expected[name])
        result.ended_within(ENDS_S, since_s)


class Served:
    """The cluster: ``one`` coordinates, all three run layers."""

    def __init__(self, folder: Path, model: str | Path, stack: ExitStack, *options: str) -> None:
        serve = ("serve", "-m", str(model), "--listen", "127.0.0.1:0", "--http", "off", "--memory", "1GB", "--exact")
        one = Member(folder, "one", *serve, *options)
        stack.callback(one.close)
        self.members = {"one": one}
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("EDGEPP_HOME", str(one.home))
        address = str(one.expect("listening")["address"])
        # The same port if it is started again.
        one._command = tuple(address if part == "127.0.0.1:0" else part for part in one._command)
        with connect_coordinator([Address.parse(address)]) as client:
            token = str(client.call("token")["token"])
        for name in NAMES[1:]:
            self.members[name] = Member(folder, name, "join", "--peer", address, "--memory", "1GB", EDGEPP_TOKEN=token)
            stack.callback(self.members[name].close)
        self.whole()

    def status(self) -> Status:
        """The cluster's state; empty if the coordinator does not answer."""
        with suppress(EdgeppError), connect_coordinator() as client:
            return client.status
        return {}

    def wait(self, what: str, accept: Any) -> Status:
        """The first status that ``accept`` takes."""
        seen: Status = {}

        def look() -> bool:
            nonlocal seen
            seen = self.status()
            return bool(seen) and bool(accept(seen))

        try:
            eventually(what, look)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {json.dumps(seen)}; {self.logs()}") from error
        return seen

    def whole(self) -> Status:
        """The status once all three nodes are ready and have layers."""
        return self.wait(
            "all three nodes have layers",
            lambda state: (
                state["state"] == "ready"
                and sorted(stage["node"] for stage in state["stages"]) == sorted(NAMES)
                and all(node["state"] == "ready" for node in state["nodes"])
            ),
        )

    def stage(self, index: int) -> tuple[Member, psutil.Process]:
        """The node and the process of the stage with this index, in a whole cluster."""
        stage = self.whole()["stages"][index]
        return self.members[stage["node"]], psutil.Process(stage["pid"])

    def logs(self) -> str:
        """The end of what each node printed."""
        return "\n".join(f"{member.name}: {member.log.read_text()[-1500:]}" for member in self.members.values())

    def footprint(self) -> Footprint:
        """What the processes of all nodes hold open."""
        return Footprint.of({name: member.family for name, member in self.members.items()})

    def gauge(self) -> list[tuple[int, int]]:
        """(sequences, bytes of keys and values) of each stage, once nothing is being answered."""
        state = self.wait("no request is live", _idle)
        return [(stage["sequences"], stage["kv_bytes"]) for stage in state["stages"]]


def _idle(state: Status) -> bool:
    engine = state["engine"]
    return state["state"] == "ready" and bool(engine) and (engine["live"], engine["waiting"]) == (0, 0)


@contextmanager
def serving(folder: Path, model: str | Path, *options: str) -> Iterator[Served]:
    """A cluster of three nodes that is ready to answer."""
    with ExitStack() as stack:
        yield Served(folder, model, stack, *options)


class Baseline:
    """What a cluster holds before a fault, to be compared with what it holds after the same questions."""

    def __init__(self, cluster: Served, questions: Sequence[tuple[Prompt, GenerateOptions]]) -> None:
        self._cluster, self._questions = cluster, questions
        self._ask()
        self._ask()  # the first answers open what later ones use again
        self.gauge, self.footprint = self._settled()

    def is_restored(self, within_s: float = PATIENCE_S) -> None:
        """Fail unless the cluster comes back to what it held, by role of process, after the same questions."""
        self._cluster.whole()
        self._ask()

        def complaint() -> str:
            now = self._cluster.gauge()
            grown = self.footprint.grown(self._cluster.footprint())
            more = len(now) != len(self.gauge) or any(
                sequences > most[0] or kv_bytes > _SLACK * most[1]
                for (sequences, kv_bytes), most in zip(now, self.gauge, strict=True)
            )
            return grown or (f"(sequences, bytes): {self.gauge} -> {now}" if more else "")

        settles(complaint, "more than before the fault", within_s)

    def _ask(self) -> None:
        for stream in [Stream(prompt, options) for prompt, options in self._questions]:
            assert stream.result().error is None

    def _settled(self) -> tuple[list[tuple[int, int]], Footprint]:
        seen: list[tuple[list[tuple[int, int]], Footprint]] = []

        def complaint() -> str:
            seen.append((self._cluster.gauge(), self._cluster.footprint()))
            return "" if len(seen) > 12 and seen[-12:] == [seen[-1]] * 12 else "still changing"

        settles(complaint, "the cluster does not settle")
        return seen[-1]
