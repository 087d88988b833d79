"""A cluster on loopback: real processes, each machine with a configuration of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.cluster import EDGEPP, Machine, serving, wait_for
from tests.waiting import PATIENCE_S, eventually

ASK = ("--raw", "-p", "Once upon a time", "-n", "12", "--ignore-eos", "--temperature", "0", "--json")


@pytest.fixture
def one(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "one")


@pytest.fixture
def two(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "two")


def test_chats_share_a_cluster_and_get_the_tokens_of_one_machine(one: Machine, tiny: Path) -> None:
    alone = one.json("chat", "-m", str(tiny), "--alone", "--exact", *ASK)
    with serving(one, tiny, "--stages", "2", "--exact"):
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: one.json("chat", "--exact", *ASK), range(2)))
        for answer in answers:
            assert answer["token_ids"] == alone["token_ids"]
            assert answer["text"] == alone["text"]
            assert [stage["layers"] for stage in answer["stages"]] == [[0, 2], [2, 4]]
        state = one.json("status", "--json")
        assert state["answers"]["done"] == 2
        assert (state["engine"]["live"], state["engine"]["waiting"]) == (0, 0)


def test_a_machine_joins_by_invitation_and_leaves_by_revocation(one: Machine, two: Machine, tiny: Path) -> None:
    with serving(one, tiny, "--memory", "1GB") as (served, address):
        code = one.json("invite", "--json")["code"]
        with two.running("join", code, "--peer", address, "--memory", "3GB") as joined:
            assert joined.until("joined")["coordinator"] == "one"
            state = wait_for(one, 2)
            assert [(s["node"], s["layers"]) for s in state["stages"]] == [("one", [0, 1]), ("two", [1, 4])]
            assert len(two.json("chat", *ASK)["token_ids"]) == 12
            (peer,) = one.json("peers", "--json")["peers"]
            assert (peer["name"], peer["state"]) == ("two", "ready")
            assert two.run("revoke", "one").returncode == 1
            assert one.json("revoke", "two", "--json")["revoked"] == "two"
            assert joined.process.wait(PATIENCE_S) == 1
            assert "one revoked this node" in joined.process.stderr.read()  # type: ignore[union-attr]
        wait_for(one, 1)
        again = two.run("join", "--peer", address, "--threads", "1")
        assert again.returncode == 1
        assert "not admit" in again.stderr
        refused = served.until("note")
        while "refused a stranger at 127.0.0.1" not in refused["text"]:
            refused = served.until("note")


def test_a_code_works_once_and_not_after_three_wrong_guesses(one: Machine, two: Machine, tiny: Path) -> None:
    with serving(one, tiny, "--no-stage") as (_, address):
        number, first, second = one.json("invite", "--json")["code"].split("-")
        wrong = f"{number}-{second}-{first}"
        for _ in range(3):
            assert "wrong" in two.run("join", wrong, "--peer", address).stderr
        done = two.run("join", f"{number}-{first}-{second}", "--peer", address)
        assert done.returncode == 1
        assert "void" in done.stderr or "not open" in done.stderr or "nobody takes" in done.stderr
        assert one.json("peers", "--json")["peers"] == []


def test_a_token_lets_a_machine_in_that_nobody_sits_at(one: Machine, two: Machine, tiny: Path) -> None:
    with serving(one, tiny) as (_, address):
        token = one.json("token", "--json")
        with two.running("join", "--peer", address, EDGEPP_TOKEN=token["token"]) as joined:
            joined.until("joined")
            wait_for(one, 2)
            assert one.json("revoke", token["name"], "--json")["revoked"] == token["name"]
        three = Machine(one.home, "three")
        refused = three.run("join", "--peer", address, EDGEPP_TOKEN=token["token"])
        assert refused.returncode == 1
        assert "does not admit this token" in refused.stderr


def test_a_revoked_machine_comes_back_by_a_code_and_not_by_its_token(one: Machine, two: Machine, tiny: Path) -> None:
    with serving(one, tiny, "--no-stage") as (_, address):
        token = one.json("token", "--json")
        with two.running("join", "--peer", address, EDGEPP_TOKEN=token["token"]) as joined:
            joined.until("joined")
            answer = one.json("revoke", "two", "--json")
            assert (answer["kind"], answer["came_by"]) == ("node", token["name"])
            assert joined.process.wait(PATIENCE_S) == 1
        assert two.run("leave").returncode == 0
        refused = two.run("join", "--peer", address, EDGEPP_TOKEN=token["token"])
        assert refused.returncode == 1
        assert "one revoked this machine's key" in refused.stderr
        told = one.json("peers", "--json")
        assert ([peer["name"] for peer in told["revoked"]], told["peers"]) == (["two"], [])
        code = one.json("invite", "--json")["code"]
        with two.running("join", code, "--peer", address) as joined:
            joined.until("joined")
            assert one.json("peers", "--json")["revoked"] == []
        assert one.json("revoke", token["name"], "--json")["kind"] == "token"
        assert [one["name"] for one in one.json("peers", "--json")["withdrawn"]] == [token["name"]]


def test_a_machine_comes_back_by_its_token_to_a_coordinator_that_lost_its_book(
    one: Machine, two: Machine, tiny: Path
) -> None:
    with serving(one, tiny, "--no-stage") as (_, address):
        token = one.json("token", "--json")["token"]
        book = one.home / "one" / "cluster.json"
        before = book.read_bytes()
        with two.running("join", "--peer", address, EDGEPP_TOKEN=token) as joined:
            joined.until("joined")
    book.write_bytes(before)  # from a backup, made before the machine joined
    with serving(one, tiny, "--no-stage") as (_, address):
        assert one.json("peers", "--json")["peers"] == []
        with two.running("join", "--peer", address, EDGEPP_TOKEN=token) as joined:
            assert joined.until("joined")["coordinator"] == "one"
        assert one.json("revoke", "token-1", "--json")["kind"] == "token"
        with two.running("join", "--peer", address, EDGEPP_TOKEN=token) as joined:  # a member needs no token
            assert joined.until("joined")["coordinator"] == "one"


def test_one_machine_is_one_node_until_it_leaves(one: Machine, two: Machine, tiny: Path) -> None:
    with serving(one, tiny, "--memory", "1GB") as (_, address):
        code = one.json("invite", "--json")["code"]
        with two.running("join", code, "--peer", address, "--memory", "3GB") as joined:
            joined.until("joined")
            assert joined.until("assignment")["layers"] == [[1, 4]]
            for command in (("join", "--peer", address), ("serve", "-m", str(tiny), "--no-stage")):
                second = two.run(*command)
                assert second.returncode == 2
                assert f"`edgepp join` (process {joined.process.pid})" in second.stderr
            left = two.run("leave")
            assert left.returncode == 0, left.stderr
            assert f"(process {joined.process.pid}) has ended" in left.stdout
            assert joined.process.wait(PATIENCE_S) == 0
            assert "has left the cluster of one" in joined.process.stdout.read()  # type: ignore[union-attr]
        wait_for(one, 1)
        assert one.json("peers", "--json")["peers"] == []
        assert "belongs to no cluster" in two.run("leave").stdout


def test_a_cluster_ends_only_when_that_was_wanted(one: Machine, two: Machine, tiny: Path) -> None:
    with serving(one, tiny, "--no-stage") as (served, address):
        code = one.json("invite", "--json")["code"]
        with two.running("join", code, "--peer", address) as joined:
            joined.until("joined")
            asked = one.run("leave")
            assert asked.returncode == 2
            assert "1 other machine" in asked.stderr
            assert "--yes" in asked.stderr
            assert one.json("status", "--json")["nodes"]
            assert one.run("leave", "--yes").returncode == 0
            assert served.process.wait(PATIENCE_S) == 0
            assert joined.process.wait(PATIENCE_S) == 1
            assert "one ended the cluster" in joined.process.stderr.read()  # type: ignore[union-attr]


def test_another_cluster_is_joined_only_when_that_was_wanted(one: Machine, two: Machine, tiny: Path) -> None:
    three = Machine(one.home, "three")
    with serving(one, tiny, "--no-stage") as (_, address), serving(three, tiny, "--no-stage") as (_, other):
        code = one.json("invite", "--json")["code"]
        with two.running("join", code, "--peer", address) as joined:
            joined.until("joined")
        code, token = three.json("invite", "--json")["code"], three.json("token", "--json")["token"]
        for refused in (two.run("join", code, "--peer", other), two.run("join", "--peer", other, EDGEPP_TOKEN=token)):
            assert refused.returncode == 1
            assert "of another cluster" in refused.stderr
            assert "--replace" in refused.stderr
        assert [peer["name"] for peer in one.json("peers", "--json")["peers"]] == ["two"]
        with two.running("join", code, "--replace", "--peer", other) as joined:
            assert joined.until("joined")["coordinator"] == "three"


def test_a_node_hears_why_it_runs_nothing(one: Machine, two: Machine, tiny: Path) -> None:
    with serving(one, tiny) as (_, address):
        code = one.json("invite", "--json")["code"]
        with two.running("join", code, "--peer", address, "--layers", "2-7") as joined:
            assignment = joined.until("assignment")
            assert assignment["layers"] == []
            assert "the model has only layers 0-3" in assignment["reason"]


def test_a_coordinator_without_layers_waits_for_a_node_that_has_room(one: Machine, two: Machine, tiny: Path) -> None:
    with serving(one, tiny, "--no-stage") as (_, address):
        state = one.json("status", "--json")
        assert (state["state"], state["stages"]) == ("waiting", [])
        code = one.json("invite", "--json")["code"]
        with two.running("join", code, "--peer", address, "--layers", "0-3") as joined:
            joined.until("joined")
            state = wait_for(one, 1)
            assert state["stages"][0]["node"] == "two"
            assert one.json("chat", *ASK)["stages"][0]["node"] == "two"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_chat_says_which_machine_it_waits_for_and_ends_by_ctrl_c(
    one: Machine, two: Machine, tiny: Path, options: tuple[str, ...]
) -> None:
    with serving(one, tiny, "--no-stage") as (_, address):
        code = one.json("invite", "--json")["code"]
        with two.running("join", code, "--peer", address) as joined:
            joined.until("joined")
        chat = subprocess.Popen(
            [*EDGEPP, "chat", "-p", "hi", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=one.env(),
        )
        assert chat.stderr is not None
        said = next(line for line in chat.stderr if "waiting (" in line)
        assert "of at most 120 s): two is away; without it, no node" in said
        chat.send_signal(signal.SIGINT)
        out, said = chat.communicate(timeout=PATIENCE_S)
        assert (chat.returncode, out.strip()) == (130, "")
        assert "Traceback" not in said


def test_impossible_commands_are_one_sentence(one: Machine, two: Machine, tiny: Path) -> None:
    for arguments in (("invite",), ("status",), ("peers",), ("join",)):
        done = two.run(*arguments)
        assert done.returncode == 1, done
        assert "belongs to no cluster" in done.stderr
        assert "Traceback" not in done.stderr
    assert "no model is named" in two.run("chat", "-p", "hi").stderr
    assert two.run("join", "nonsense", "--peer", "127.0.0.1:1").returncode == 2
    with serving(one, tiny, "--no-stage") as (_, address):
        taken = two.run("serve", "-m", str(tiny), "--listen", address, "--no-stage")
        assert taken.returncode == 2
        assert "cannot listen" in taken.stderr


def test_a_model_that_the_cluster_does_not_run_runs_here_alone(one: Machine, tiny: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", TINY, seed=5)
    with serving(one, tiny):
        done = one.run("chat", "-m", str(other), *ASK)
        assert done.returncode == 0, done.stderr
        assert "runs on this machine" in done.stderr
        assert json.loads(done.stdout)["stages"][0]["address"] == ""


def test_a_stage_that_dies_is_loaded_again(one: Machine, tiny: Path) -> None:
    with serving(one, tiny) as (_, _):
        pid = wait_for(one, 1)["stages"][0]["pid"]
        os.kill(pid, signal.SIGKILL)
        eventually("another stage process is ready", lambda: wait_for(one, 1)["stages"][0]["pid"] != pid)
        assert len(one.json("chat", *ASK)["token_ids"]) == 12


def test_a_stage_that_dies_between_questions_costs_none_of_them(one: Machine, tiny: Path) -> None:
    with serving(one, tiny, "--stages", "2", "--exact"):
        before = one.json("chat", *ASK)["token_ids"]
        for _ in range(4):
            pid = wait_for(one, 2)["stages"][1]["pid"]
            os.kill(pid, signal.SIGKILL)
            assert one.json("chat", *ASK)["token_ids"] == before


def test_an_answer_goes_on_after_a_stage_has_died(one: Machine, tmp_path: Path) -> None:
    long = make_checkpoint(tmp_path / "long", replace(TINY, context=1 << 15))
    with serving(one, long, "--stages", "2", "--exact", "--context", "32000"):
        talking = subprocess.Popen(
            [*EDGEPP, "chat", "--raw", "-p", "hello", "-n", "30000", "--ignore-eos"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=one.env(),
        )
        with talking:
            assert talking.stdout is not None
            assert talking.stdout.read(1)
            killed = wait_for(one, 2)["stages"][1]["pid"]
            os.kill(killed, signal.SIGKILL)
            eventually("the answer goes on", lambda: wait_for(one, 2)["engine"].get("recoveries"))
            assert talking.stdout.read(1)
            assert wait_for(one, 2)["stages"][1]["pid"] != killed
            talking.send_signal(signal.SIGINT)
            talking.communicate(timeout=PATIENCE_S)


def test_a_model_that_does_not_fit_is_said_at_once(one: Machine, tiny: Path) -> None:
    with one.running("serve", "-m", str(tiny), "--listen", "127.0.0.1:0", "--memory", "1MB") as served:
        served.until("listening")
        while "does not fit" not in (said := served.until("note")["text"]):
            continue
        assert "what would help" in said or "choose a smaller model" in said
        done = one.run("chat", *ASK, timeout_s=60)  # the two minutes of a cluster that is loading are longer
        assert done.returncode == 1
        assert "the cluster cannot answer: the model does not fit" in done.stderr
        assert "try: " in done.stderr
