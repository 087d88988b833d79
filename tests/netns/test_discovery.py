"""Discovery between hosts: who is heard, who is told apart, and what happens without multicast."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.netns.net import Host, Lan
from tests.waiting import PATIENCE_S, eventually

SCRIPT = Path(__file__).with_name("discovering.py")
OURS, THEIRS = "0123456789abcdef", "fedcba9876543210"


@dataclass
class Heard:
    hosts: list[str]
    port: int
    invitations: list[int]


class Speaker:
    """An announcer or a browser on a host."""

    def __init__(self, host: Host, *args: str) -> None:
        command = (sys.executable, str(SCRIPT), *args)
        self.process = host.popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, wait_s: float, cluster: str, *addresses: str) -> list[Heard]:
        """The records of ``cluster`` that have these addresses."""
        assert self.process.stdout is not None
        self.tell(" ".join([str(wait_s), cluster, *addresses]))
        return [Heard(*record) for record in json.loads(self.process.stdout.readline())]


def announcer(host: Host, cluster: str, node: str, port: int) -> Speaker:
    speaker = Speaker(host, "announce", cluster, node, str(port))
    assert speaker.process.stdout is not None
    assert speaker.process.stdout.readline() == "ready\n"
    return speaker


def test_a_coordinator_is_found_with_its_invitations_and_another_cluster_told_apart(lan: Lan) -> None:
    one, two, three = lan.host("one"), lan.host("two"), lan.host("three")
    announcer(one, OURS, "1" * 16, 5720).tell("7 12")
    announcer(two, THEIRS, "2" * 16, 5730)
    browser = Speaker(three, "browse")
    (ours,) = browser.hear(PATIENCE_S, OURS, one.address)
    (theirs,) = browser.hear(PATIENCE_S, THEIRS, two.address)
    assert (ours.hosts[0], ours.port, ours.invitations) == (one.address, 5720, [7, 12])
    assert (theirs.hosts[0], theirs.port, theirs.invitations) == (two.address, 5730, [])
    assert "fd77::2" in ours.hosts


def test_nothing_is_found_when_the_network_passes_no_multicast(lan: Lan) -> None:
    one, two = lan.host("one"), lan.host("two")
    lan.block_multicast()
    announcer(one, OURS, "1" * 16, 5720)
    assert Speaker(two, "browse").hear(4, OURS) == []
    connect = f"import socket; socket.create_connection(('{one.address}', 5720), 5)"
    assert "ConnectionRefusedError" in two.run(sys.executable, "-c", connect).stderr  # so they can reach each other


def test_a_host_behind_its_own_firewall_neither_hears_nor_is_heard(lan: Lan) -> None:
    one, two, three = lan.host("one"), lan.host("two"), lan.host("three")
    two.block_multicast()
    announcer(one, OURS, "1" * 16, 5720)
    announcer(two, THEIRS, "2" * 16, 5730)
    deaf, hears = Speaker(two, "browse"), Speaker(three, "browse")
    assert hears.hear(PATIENCE_S, OURS)
    assert deaf.hear(3, OURS) == []
    assert hears.hear(0, THEIRS) == []


def test_a_new_address_is_seen_soon_after_a_refresh(lan: Lan) -> None:
    one, two = lan.host("one"), lan.host("two")
    speaker, browser = announcer(one, OURS, "1" * 16, 5720), Speaker(two, "browse")
    assert browser.hear(PATIENCE_S, OURS, one.address)
    one.move("10.77.0.40")
    speaker.tell("refresh")
    (record,) = browser.hear(PATIENCE_S, OURS, "10.77.0.40")
    assert record.hosts


def test_a_browser_that_moved_hears_again(lan: Lan) -> None:
    one, two = lan.host("one"), lan.host("two")
    announcer(one, OURS, "1" * 16, 5720)
    browser = Speaker(two, "browse")
    assert browser.hear(PATIENCE_S, OURS)
    two.link(up=False)
    two.move("10.77.0.41")
    two.link(up=True)
    browser.tell("refresh")
    assert browser.hear(PATIENCE_S, OURS, one.address)


def test_an_interface_that_leads_nowhere_does_no_harm(lan: Lan) -> None:
    one, two = lan.host("one"), lan.host("two")
    one.add_decoy("docker0", "172.17.0.1/16")
    two.add_decoy("docker0", "172.17.0.1/16")
    announcer(one, OURS, "1" * 16, 5720)
    (record,) = Speaker(two, "browse").hear(PATIENCE_S, OURS, one.address, "172.17.0.1")
    assert (record.hosts[0], record.hosts[-1]) == (one.address, "172.17.0.1")


def hearings(host: Host) -> dict[str, tuple[bool, list[str], bool]]:
    """For each interface of ``host``: whether it heard itself, whom else, and whether sending failed."""
    look = "{one.interface: (one.own, one.others, one.error is not None) for one in listen(5.0)}"
    source = f"import json; from edgepp.cluster.discovery.multicast_check import listen; print(json.dumps({look}))"
    done = host.run(sys.executable, "-c", source)
    assert done.returncode == 0, done.stderr
    return {name: tuple(heard) for name, heard in json.loads(done.stdout).items()}


def test_the_doctor_hears_on_which_interface_multicast_gets_through(lan: Lan) -> None:
    one, two = lan.host("one"), lan.host("two")
    two.add_decoy("docker0", "172.17.0.1/16")
    announcer(one, OURS, "1" * 16, 5720)
    both = {"eth0": (True, [one.address], False), "docker0": (True, [], False)}
    eventually("it hears itself and the other host", lambda: hearings(two) == both)
    lan.block_multicast()
    itself = {"eth0": (True, [], False), "docker0": (True, [], False)}
    eventually("it hears itself", lambda: hearings(two) == itself)
    two.block_multicast()
    assert hearings(two) == {"eth0": (False, [], True), "docker0": (False, [], True)}


def test_a_capture_holds_what_crosses_the_bridge(lan: Lan) -> None:
    one, two = lan.host("one"), lan.host("two")
    said = "sixteen bytes or more, said once"
    listen = f"import socket; s = socket.create_server(('{one.address}', 5000)); print(s.accept()[0].recv(99))"
    with lan.capture() as capture:
        server = one.popen(sys.executable, "-c", listen, stdout=subprocess.PIPE)
        say = f"import socket; socket.create_connection(('{one.address}', 5000), 5).sendall(b'{said}')"
        eventually("it is heard", lambda: two.run(sys.executable, "-c", say).returncode == 0)
        assert server.stdout is not None
        assert said in server.stdout.readline()
    assert capture.holds(said.encode())
    assert not capture.holds(b"what nobody said")
