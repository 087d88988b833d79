"""Links that swallow, break, flap, move and crawl, under answers of a cluster of three hosts with real weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster import chat as chat_here
from tests.faults.oracle import Footprint, settles
from tests.netns.members import MODEL, Asker, Daemon, Status, answers_with, invite, join, members, serve
from tests.netns.net import Host, Lan, unavailable

NAMES = ("one", "two", "three")
PROMPT, TOKENS = "What is the capital of France?", 64


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> None:
    """The cluster lives from test to test; the hosts end what is in them."""


@dataclass
class Cluster:
    """Host ``one`` coordinates, ``two`` and ``three`` are members; questions come from ``one``."""

    hosts: dict[str, Host]
    daemons: dict[str, Daemon] = field(default_factory=dict)
    watcher: Asker = field(init=False)
    asker: Asker = field(init=False)
    expected: list[int] = field(default_factory=list)
    footprint: Footprint = field(init=False)

    def form(self) -> None:
        """Start and join all members, and ask once, so that all links are open."""
        options = ("--memory", "1GB", "--exact", "--http", "off")
        self.daemons["one"] = serve(self.hosts["one"], *options)
        for name in NAMES[1:]:
            self.daemons[name] = join(self.hosts[name], "--memory", "1GB", invite(self.hosts["one"]))
            self.daemons[name].expect("joined")
        self.watcher, self.asker = Asker(self.hosts["one"]), Asker(self.hosts["one"])
        self.whole()
        assert self.recite(TOKENS)["token_ids"] == self.expected
        self.footprint = self.descriptors()

    def whole(self) -> Status:
        """The status once all three nodes are ready and have layers."""
        ready = answers_with(NAMES)
        return self.watcher.wait(
            "all three ready", lambda s: ready(s) and all(m.state == "ready" for m in members(s).values())
        )

    def descriptors(self) -> Footprint:
        """What the processes of all nodes hold open."""
        return Footprint.of({name: daemon.processes for name, daemon in self.daemons.items()})

    def begin(self) -> None:
        """Ask, and wait until tokens of the answer are being computed."""
        done = self.watcher.status()["stages"][-1]["frames"]
        self.asker.tell(f"recite {TOKENS} {PROMPT}")
        self.watcher.wait("tokens are being computed", lambda s: _frames(s) > done + 10)

    def recite(self, tokens: int) -> Status:
        """A whole answer of so many tokens, or why there is none."""
        self.asker.tell(f"recite {tokens} {PROMPT}")
        return self.asker.hear()


def _frames(status: Status) -> int:
    return int(status["stages"][-1].get("frames", 0)) if status["stages"] else 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if (reason := unavailable()) is not None:
        pytest.skip(reason)
    told = ("--alone", "-m", MODEL, "--exact", "--threads", "1", "-p", PROMPT, "-n", str(TOKENS), "--ignore-eos")
    alone = chat_here(*told, "--temperature", "0")
    with Lan(ipv6=False) as lan:  # where two ways lead to a host, a busy machine may take either
        made = Cluster({name: lan.host(name) for name in NAMES}, expected=list(alone["token_ids"]))
        made.form()
        yield made


@pytest.fixture(autouse=True)
def restored(cluster: Cluster) -> Iterator[None]:
    """End every test with a whole cluster that gives the right tokens, and holds no more open than at first."""
    yield
    cluster.whole()
    assert cluster.recite(8).get("token_ids") == cluster.expected[:8]
    settles(lambda: cluster.footprint.grown(cluster.descriptors()), "more than before the fault")


def right(cluster: Cluster, said: Status) -> None:
    """Fail unless an answer has the tokens of one process."""
    assert said.get("token_ids") == cluster.expected, said


def both_ways(cluster: Cluster, on: bool) -> None:
    one, two = cluster.hosts["one"], cluster.hosts["two"]
    one.swallow(two.address, on)
    two.swallow(one.address, on)


def from_two(cluster: Cluster, on: bool) -> None:
    cluster.hosts["two"].swallow(cluster.hosts["one"].address, on)


def to_next(cluster: Cluster, on: bool) -> None:
    """The link between two stages; both still reach the coordinator."""
    cluster.hosts["two"].swallow(cluster.hosts["three"].address, on)


@pytest.mark.parametrize(
    ("swallow", "seconds"), [(from_two, 2.0), (both_ways, 2.0), (both_ways, 12.0), (to_next, 2.0), (to_next, 12.0)]
)
def test_a_link_swallows_what_is_sent(
    cluster: Cluster, swallow: Callable[[Cluster, bool], None], seconds: float
) -> None:
    cluster.begin()
    swallow(cluster, True)
    began_s = time.monotonic()
    time.sleep(seconds)
    swallow(cluster, False)
    right(cluster, cluster.asker.hear())
    report("swallowed", began_s)


def test_a_cable_is_pulled_again_and_again(cluster: Cluster) -> None:
    before = cluster.whole()["plan_version"]
    cluster.begin()
    for _ in range(4):
        cluster.hosts["two"].link(up=False)
        time.sleep(1.0)
        cluster.hosts["two"].link(up=True)
        time.sleep(2.0)
    right(cluster, cluster.asker.hear())
    assert cluster.whole()["plan_version"] - before <= 2, "a plan per flap"


@pytest.mark.parametrize("name", ["two", "one"])
def test_a_host_moves_in_the_middle_of_an_answer(cluster: Cluster, name: str) -> None:
    move(cluster, name, 50 + NAMES.index(name))


def test_a_host_that_moves_in_an_answer_keeps_its_weights(cluster: Cluster) -> None:
    before = members(cluster.whole())
    move(cluster, "two", 60)
    assert members(cluster.whole())["two"].pids == before["two"].pids


def move(cluster: Cluster, name: str, number: int) -> None:
    """Give a host another address during an answer."""
    cluster.begin()
    cluster.hosts[name].move(f"10.77.0.{number}")
    began_s = time.monotonic()
    right(cluster, cluster.asker.hear())
    report(f"{name} moved", began_s)


@pytest.mark.parametrize(("first", "second"), [("two", "three"), ("one", "two")])
def test_two_hosts_take_one_anothers_address_in_an_answer(cluster: Cluster, first: str, second: str) -> None:
    """Each finds at the known address another machine's stage, at the same port and with another key."""
    hosts = cluster.hosts[first], cluster.hosts[second]
    addresses = [host.address for host in hosts]
    cluster.begin()
    for host, address in zip(hosts, reversed(addresses), strict=True):
        host.move(address)
    began_s = time.monotonic()
    right(cluster, cluster.asker.hear())
    report(f"{first} and {second} swapped", began_s)


@pytest.mark.parametrize("kbit_per_s", [1000, 20_000])
def test_a_slow_link_is_slow_and_right(cluster: Cluster, kbit_per_s: int) -> None:
    before = cluster.whole()["plan_version"]
    for host in cluster.hosts.values():
        host.slow_down(kbit_per_s)
    try:
        right(cluster, cluster.recite(TOKENS))
        assert cluster.whole()["plan_version"] == before
    finally:
        for host in cluster.hosts.values():
            host.slow_down(None)


def test_data_that_crawl_do_not_look_like_a_death(cluster: Cluster) -> None:
    state = cluster.whole()
    before = state["plan_version"]
    (stage,) = [stage for stage in state["stages"] if stage["node"] == "two"]
    control_port = int(stage["address"].rpartition(":")[2])
    (data_port,) = listening(stage["pid"]) - {control_port}
    cluster.hosts["one"].slow_down(256, data_port)
    try:
        right(cluster, cluster.recite(TOKENS))
        assert cluster.whole()["plan_version"] == before
    finally:
        cluster.hosts["one"].slow_down(None)


def listening(pid: int) -> set[int]:
    """TCP ports on which a process listens, also one in another namespace."""
    found = set()
    owned = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in owned:
                found.add(int(local.rpartition(":")[2], 16))
    return found


def report(what: str, began_s: float) -> None:
    """Report a measured time."""
    print(f"\n  measured: {what}: the answer was complete {time.monotonic() - began_s:.1f} s later")  # noqa: T201
