"""A cluster of hosts: real processes, found, paired, placed, and kept together while hosts move, sleep and die.

One cluster lives through most of these tests in the order of this file; `pytest -s` shows what was measured.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from edgepp.coordinator.plan_timing import RETURN_WAIT_S
from edgepp.engine.stage_watch import LOST_S
from tests.cluster import chat as chat_here
from tests.netns.members import (
    MODEL,
    Asker,
    Daemon,
    Member,
    Status,
    answers_with,
    chat,
    invite,
    join,
    members,
    serve,
)
from tests.netns.net import Capture, Host, Lan, unavailable
from tests.waiting import PATIENCE_S, eventually

PROMPT, TOKENS = "What is the capital of France?", 24


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> None:
    """The cluster runs from test to test; that it leaves nothing behind is the last of them."""


@dataclass
class Home:
    """The cluster that most tests are about: host ``one`` coordinates, ``two`` and ``three`` are members."""

    lan: Lan
    one: Host
    two: Host
    three: Host
    capture: Capture
    daemons: dict[str, Daemon] = field(default_factory=dict)
    codes: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    asker: Asker = field(init=False)
    first: list[list[int]] = field(default_factory=list)
    """The tokens of its first answers."""
    settled: dict[str, Member] = field(default_factory=dict)
    plan_version: int = 0

    def serve(self) -> Daemon:
        """Start the coordinator."""
        self.daemons["one"] = serve(self.one, "--memory", "1GB", "--exact")
        return self.daemons["one"]

    def join(self, host: Host, memory: str, *args: str) -> Daemon:
        """Start a member."""
        self.daemons[host.name] = join(host, "--memory", memory, *args)
        return self.daemons[host.name]

    @property
    def hosts(self) -> dict[str, Host]:
        """Its hosts by name."""
        return {host.name: host for host in (self.one, self.two, self.three)}

    def settle(self) -> None:
        """Wait until all is well, and remember how it is."""
        ready = answers_with(["one", "two", "three"])
        wanted = "all three ready"
        state = self.asker.wait(wanted, lambda s: ready(s) and all(m.state == "ready" for m in members(s).values()))
        self.settled, self.plan_version = members(state), state["plan_version"]

    def invite(self) -> str:
        """A code, kept to be searched for."""
        self.codes.append(invite(self.one))
        return self.codes[-1]


def show(text: str) -> None:
    """Report a measured fact."""
    print(f"\n  measured: {text}")  # noqa: T201


@pytest.fixture(scope="module")
def expected() -> list[int]:
    """What the model answers alone."""
    answer = chat_here("--alone", "-m", MODEL, "--exact", "--threads", "1", "-p", PROMPT, "-n", str(TOKENS))
    return list(answer["token_ids"])


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """The cluster as it was formed, without any address, under a capture that lasts until the first answers."""
    if (reason := unavailable()) is not None:
        pytest.skip(reason)
    with Lan(ipv6=False) as lan:  # where two ways lead to a host, a busy machine may take either
        one, two, three = (lan.host(name) for name in ("one", "two", "three"))
        with lan.capture() as capture:
            made = Home(lan, one, two, three, capture)
            made.serve()
            for host, memory in ((made.two, "2GB"), (made.three, "3GB")):
                made.join(host, memory, made.invite()).expect("joined")
            made.asker = Asker(made.one)
            began_s = time.monotonic()
            made.asker.wait("three stages", answers_with(["one", "two", "three"]))
            show(f"three stages {time.monotonic() - began_s:.1f} s after the last one joined")
            made.first = [chat(host, PROMPT, TOKENS)["token_ids"] for host in (made.two, made.one)]
        yield made


def test_layers_are_split_by_memory(home: Home) -> None:
    state = home.asker.status()
    held = {name: member.layers[0][1] - member.layers[0][0] for name, member in members(state).items()}
    assert held == {"one": 5, "two": 10, "three": 15}


def test_every_node_gives_the_answer_of_the_model_alone(home: Home, expected: list[int]) -> None:
    assert home.first == [expected, expected]


def test_a_capture_holds_no_plaintext(home: Home) -> None:
    assert home.capture.holds(b"_edgepp")  # the announcement: so frames were captured
    everything = b"\0".join(home.capture.frames).lower()
    show(f"{len(home.capture.frames)} frames, {len(everything) / 1e6:.1f} MB captured")
    words = [word for code in home.codes for word in code.split("-")[1:] if len(word) > 4]
    for needle in ("capital", "france", "paris", "smollm", "decoder", *home.codes, *words):
        assert needle.encode() not in everything, needle


def test_only_the_coordinator_lets_others_in(home: Home) -> None:
    for command in (("invite",), ("token",), ("revoke", "three")):
        done = home.two.edgepp(*command)
        assert done.returncode == 1
        assert "only the coordinator's own machine may do that: run it on one" in done.stderr


def test_two_chats_share_it(home: Home, expected: list[int]) -> None:
    askers = [home.asker, Asker(home.three)]
    for asker in askers:
        asker.tell(f"ask {TOKENS} {PROMPT}")
    assert [asker.hear()["token_ids"] for asker in askers] == [expected, expected]


def test_a_second_cluster_on_the_network_stays_apart(home: Home) -> None:
    four, five = home.lan.host("four"), home.lan.host("five")
    for host in (four, five):
        host.add_decoy("docker0", "172.17.0.1/16")  # an address of both that leads nowhere does no harm
    theirs = serve(four, "--memory", "2GB")
    ours = home.invite()
    code = invite(four)
    while code.partition("-")[0] == ours.partition("-")[0]:
        code = invite(four)
    member = join(five, "--memory", "2GB", code)
    assert member.expect("joined")["cluster"] == theirs.expect("listening")["cluster"]
    asker = Asker(five)
    state = asker.wait("both stages", answers_with(["four", "five"]))
    assert {node["name"]: node["address"] for node in state["nodes"]}["five"] == five.address
    assert "token_ids" in asker.ask(PROMPT, 4)
    assert set(members(home.asker.status())) == {"one", "two", "three"}
    assert "refused" not in home.daemons["one"].said
    assert "refused" not in theirs.said
    for daemon in (member, theirs):
        daemon.end()


def test_a_stranger_is_refused_on_both_sides(home: Home) -> None:
    stranger = home.lan.host("stranger")
    stranger.edgepp("peers")  # makes its identity
    shutil.copy(home.two.home / "cluster.json", stranger.home)  # so it knows where to go, and whose key to expect
    said = join(stranger).refused()
    assert "does not admit this node's key" in said
    home.daemons["one"].says(f"refused a stranger at {stranger.address}")
    for command in (("status",), ("invite",), ("chat", "-p", PROMPT)):
        done = stranger.edgepp(*command)
        assert done.returncode != 0
        assert done.stdout == ""
        assert "does not admit this node's key" in done.stderr
    assert set(members(home.asker.status())) == {"one", "two", "three"}


def test_a_stranger_without_anything_learns_nothing(home: Home) -> None:
    unpaired = home.lan.host("unpaired")
    said = join(unpaired).refused()
    assert "belongs to no cluster yet" in said
    plain = unpaired.edgepp("chat", "--peer", f"{home.one.address}:5700", "-m", MODEL, "-p", PROMPT)
    assert plain.returncode == 1
    assert plain.stdout == ""
    connect = f"s = zmq.Context.instance().socket(zmq.DEALER); s.connect('tcp://{home.one.address}:5700')"
    greet = "s.send(b'hello'); print(s.poll(300)); s.close(0)"
    again = unpaired.run(sys.executable, "-c", f"import zmq\nfor _ in range(4): {connect}; {greet}")
    assert again.stdout.split() == ["0"] * 4, again.stderr
    home.daemons["one"].says(f"refused a stranger at {unpaired.address}: ")


def test_wrong_and_used_codes_are_refused_on_both_sides(home: Home) -> None:
    guesser = home.lan.host("guesser")
    code = home.invite()
    number, first, second = code.split("-")
    wrong = f"{number}-{second}-{first}" if first != second else f"{number}-{first}-tango"
    coordinator = home.daemons["one"]
    for tally in ("2 of 3 guesses left", "1 of 3 guesses left", f"invitation {number} is now void"):
        assert tally in join(guesser, wrong, "--peer", f"{home.one.address}:5700").refused()
    coordinator.says(f"{guesser.address} guessed wrong (3 of 3) for invitation {number}")
    coordinator.says(f"invitation {number} is void after 3 wrong guesses")
    home.invite()  # so that the desk is open
    said = join(guesser, code, "--peer", f"{home.one.address}:5700").refused()
    assert f"invitation {number} is void" in said
    coordinator.says(f"{guesser.address} asked for invitation {number}, which is not open")
    used = home.codes[0]
    said = join(guesser, used, "--peer", f"{home.one.address}:5700").refused()
    assert "was used already" in said
    said = join(guesser, used).refused()
    assert "no machine on this network has an open invitation" in said


def usable(home: Home, began_s: float, what: str, *, changed: str = "", asleep_s: float = 0.0) -> None:
    """Wait until all three nodes are ready and a question is answered; what that took, counted from ``began_s``.

    Processes and layers are as they were, unless a node was away for so long, of it ``asleep_s`` asleep, that its stage
    counted as lost.
    """
    before = home.settled

    def accept(status: Status) -> bool:
        now = members(status)
        return answers_with(["one", "two", "three"])(status) and all(
            member.state == "ready" and (name != changed or member.address == home.hosts[name].address)
            for name, member in now.items()
        )

    found = home.asker.wait(what, accept)
    state, ready_s = members(found), time.monotonic() - began_s
    faults = []
    while "error" in (said := home.asker.ask(PROMPT, TOKENS)):  # the loss may show only now
        assert time.monotonic() < began_s + PATIENCE_S, said
        faults.append(said["error"])
    took_s = time.monotonic() - began_s
    show(f"{what}: ready after {ready_s:.2f} s, answered after {took_s:.2f} s; errors before: {faults}")
    assert said.get("token_ids") == home.first[0]
    if asleep_s + ready_s < LOST_S or (found["plan_version"] == home.plan_version and not asleep_s):
        assert {name: one.pids for name, one in state.items()} == {name: one.pids for name, one in before.items()}
        assert {name: one.layers for name, one in state.items()} == {name: one.layers for name, one in before.items()}


@pytest.mark.parametrize(("name", "number"), [("two", 40), ("three", 41), ("one", 42)])
def test_a_node_that_moves_is_back_in_seconds_with_its_weights(home: Home, name: str, number: int) -> None:
    home.settle()
    home.hosts[name].move(f"10.77.0.{number}")
    usable(home, time.monotonic(), f"{name} moved", changed=name if name != "one" else "")


def test_a_node_that_slept_is_back_in_seconds_with_its_weights(home: Home) -> None:
    home.settle()
    home.daemons["two"].signal(signal.SIGSTOP)
    time.sleep(2.5)  # after 5 s a silent stage counts as hung, and is started again
    home.daemons["two"].signal(signal.SIGCONT)
    usable(home, time.monotonic(), "two slept", asleep_s=2.5)


def test_a_question_to_a_sleeping_node_ends(home: Home) -> None:
    home.settle()
    home.daemons["two"].signal(signal.SIGSTOP)
    began_s = time.monotonic()
    asker = Asker(home.three)
    asker.tell(f"ask {TOKENS} {PROMPT}")
    time.sleep(7.0)  # longer than a stage may be silent
    home.daemons["two"].signal(signal.SIGCONT)
    woke_s = time.monotonic()
    said = asker.hear()
    show(f"a question asked during the stop ended after {time.monotonic() - began_s:.2f} s with {said}")
    assert said.get("token_ids") == home.first[0] or said["error"]
    usable(home, woke_s, "two slept while it was asked", asleep_s=7.0)


def test_members_come_back_to_a_coordinator_that_was_killed(home: Home) -> None:
    home.settle()
    home.daemons["one"].process.kill()
    home.daemons["one"].process.wait()
    began_s = time.monotonic()
    home.serve()
    show(f"listening again after {time.monotonic() - began_s:.2f} s")
    state = members(home.asker.wait("three stages again", answers_with(["one", "two", "three"])))
    took_s = time.monotonic() - began_s
    assert home.asker.ask(PROMPT, TOKENS).get("token_ids") == home.first[0]
    show(f"coordinator killed: three stages again after {took_s:.2f} s")
    if took_s < RETURN_WAIT_S:  # else a member may have come so late that another one took its layers
        for name in ("two", "three"):
            assert state[name].pids == home.settled[name].pids
        assert {name: one.layers for name, one in state.items()} == {n: one.layers for n, one in home.settled.items()}


def test_a_member_that_was_killed_is_planned_around_and_comes_back(home: Home) -> None:
    home.settle()
    two = home.daemons["two"]
    family = two.processes
    two.process.kill()
    began_s = time.monotonic()
    _, alive = psutil.wait_procs(family[1:], timeout=PATIENCE_S)
    assert not alive, "the stage outlived its agent"
    state = home.asker.wait("a plan without it", answers_with(["one", "three"]))
    show(f"member killed: a new plan is open after {time.monotonic() - began_s:.2f} s")
    assert members(state)["two"].state == "gone"
    assert home.asker.ask(PROMPT, TOKENS).get("token_ids") == home.first[0]
    began_s = time.monotonic()
    home.join(home.two, "2GB").expect("joined")
    home.asker.wait("a plan with it", answers_with(["one", "two", "three"]))
    show(f"member started again: it has layers after {time.monotonic() - began_s:.2f} s")


def test_a_copied_configuration_is_refused_and_the_first_undisturbed(home: Home) -> None:
    home.settle()
    copy = home.lan.host("copy")
    shutil.copytree(home.two.home, copy.home, dirs_exist_ok=True)
    began_s = time.monotonic()
    said = join(copy).refused()
    show(f"a copied configuration was refused after {time.monotonic() - began_s:.1f} s")
    reason = f"is a member already: two at {home.two.address}. Was its configuration copied?"
    assert reason in said
    home.daemons["one"].says(f"refused copy at {copy.address}: ")
    assert reason in home.daemons["one"].said
    state = home.asker.status()
    assert members(state) == home.settled
    assert home.asker.ask(PROMPT, TOKENS).get("token_ids") == home.first[0]


def test_a_copied_coordinator_does_not_serve_beside_the_first(home: Home) -> None:
    home.settle()
    twin = home.lan.host("twin")
    shutil.copytree(home.one.home, twin.home, dirs_exist_ok=True)
    said = Daemon(twin, "serve", "-m", MODEL, "--no-stage").refused()
    assert f"another machine, at {home.one.address}:5700, already serves this cluster" in said
    assert "the other can join by a code once its edgepp configuration is deleted" in said
    assert members(home.asker.status()) == home.settled
    assert home.asker.ask(PROMPT, TOKENS).get("token_ids") == home.first[0]


def test_a_token_lets_machines_in_until_it_is_revoked(home: Home) -> None:
    done = home.one.edgepp("token", "--json")
    assert done.returncode == 0, done.stderr
    token = json.loads(done.stdout)
    home.secrets.append(token["token"])
    robot, late = home.lan.host("robot"), home.lan.host("late")
    for host in (robot, late):
        host.env["EDGEPP_TOKEN"] = token["token"]
    daemon = home.join(robot, "1GB")
    daemon.expect("joined")
    home.daemons["one"].says(f"robot at {robot.address} is paired, by token-1")
    home.asker.wait("the newcomer ready", lambda status: members(status)["robot"].state == "ready")
    assert home.one.edgepp("revoke", "token-1").returncode == 0
    assert "does not admit" in join(late).refused()
    home.daemons["one"].says(f"refused a stranger at {late.address}")
    assert members(home.asker.status())["robot"].state == "ready"


def test_a_revoked_node_is_dropped_at_once_and_cannot_come_back(home: Home) -> None:
    daemon = home.daemons["robot"]
    robot = daemon.host
    connected, asking = Asker(robot), Asker(robot)
    assert connected.status()
    asking.tell(f"recite 4000 {PROMPT}")
    eventually("it is being answered", lambda: home.asker.status()["answers"]["under_way"])
    daemon.process.send_signal(signal.SIGSTOP)  # so that it is not for it to obey
    began_s = time.monotonic()
    assert home.one.edgepp("revoke", "robot").returncode == 0
    answer = asking.hear()
    assert "error" in answer or len(answer["token_ids"]) < 4000
    show(f"the answer to a revoked node ended {time.monotonic() - began_s:.2f} s after the command began")
    connected.tell("status")
    assert "error" in connected.hear()
    assert members(home.asker.status())["robot"].state == "gone"
    daemon.process.send_signal(signal.SIGCONT)
    said = daemon.refused()
    show(f"a revoked node ended {time.monotonic() - began_s:.2f} s after the command began")
    assert "revoked" in said
    assert "does not admit" in join(robot).refused()
    assert "does not admit" in robot.edgepp("status").stderr
    home.asker.wait("the others as before", answers_with(["one", "two", "three"]))
    assert home.asker.ask(PROMPT, TOKENS).get("token_ids") == home.first[0]


def test_secrets_show_nowhere(home: Home) -> None:
    files = [file for host in home.lan.hosts for file in host.home.glob("*.json")]
    assert len(files) > 2 * 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    keys = [json.loads(file.read_text())["secret"] for file in files if file.name == "identity.json"]
    secrets = [secret.encode() for secret in (*home.secrets, *keys)]
    shown = [text.encode() for host in home.lan.hosts for text in host.logs]
    lines = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            shown.append(" ".join(process.cmdline()).encode())
            lines += b"edgepp" in shown[-1]
    assert lines >= 3
    assert not [secret for secret in secrets if any(secret in text for text in shown)]


def test_everything_ends_when_it_is_told_to(home: Home) -> None:
    for daemon in home.daemons.values():
        if daemon.process.poll() is None:
            daemon.end()
            assert "Traceback" not in daemon.said


def test_a_cluster_forms_without_multicast_by_one_address(expected: list[int], lan: Lan) -> None:
    hosts = {name: lan.host(name) for name in ("one", "two", "three")}
    lan.block_multicast()
    coordinator = serve(hosts["one"], "--memory", "1GB", "--exact")
    peer = ("--peer", f"{hosts['one'].address}:5700")
    nodes = {}
    for name, memory in (("two", "2GB"), ("three", "3GB")):
        nodes[name] = join(hosts[name], "--memory", memory, *peer, invite(hosts["one"]))
        nodes[name].expect("joined")
    asker = Asker(hosts["one"])
    state = asker.wait("three stages", answers_with(list(hosts)))
    held = {stage["node"]: stage["layers"][1] - stage["layers"][0] for stage in state["stages"]}
    assert held == {"one": 5, "two": 10, "three": 15}
    assert chat(hosts["three"], PROMPT, TOKENS)["token_ids"] == expected
    nodes["two"].end()
    eventually("it left", lambda: members(asker.status())["two"].state == "gone")
    nodes["two"] = join(hosts["two"], "--memory", "2GB")
    assert nodes["two"].expect("joined")["address"] == f"{hosts['one'].address}:5700"
    asker.wait("three stages again", answers_with(list(hosts)))
    for daemon in (*nodes.values(), coordinator):
        daemon.end()
