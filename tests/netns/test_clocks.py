"""Machines whose monotonic clocks differ: the coordinator learns by how much, and says how sure it is.

Processes of one Linux machine share CLOCK_MONOTONIC, whatever their network namespace; here the members run in time
namespaces, whose clocks are ahead of the coordinator's by a known number of seconds.
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.builders.chrome_format import read
from tests.netns.members import MODEL, Asker, Daemon, Status
from tests.netns.net import Lan

AHEAD_S = {"one": 5000, "two": -60}
"""Seconds; the system refuses a clock that would be below zero, so a machine must have been up for 60 s."""
MAX_ERROR_S = 0.001


def no_time_namespaces() -> str | None:
    """Why no time namespace can be made here; None when one can."""
    if shutil.which("unshare") is None:
        return "there is no unshare command"
    tried = subprocess.run(["unshare", "--time", "--monotonic", "5", "--fork", "true"], capture_output=True, text=True)
    return tried.stderr.strip() or "no time namespace can be made" if tried.returncode else None


def test_clocks_of_machines_are_known_within_a_millisecond(lan: Lan) -> None:
    if (reason := no_time_namespaces()) is not None:
        pytest.skip(reason)
    home = lan.host("home")
    served = Daemon(home, "serve", "-m", MODEL, "--no-stage", "--threads", "1")
    served.expect("listening")
    for name, ahead_s in AHEAD_S.items():
        code = json.loads(home.edgepp("invite", "--json").stdout)["code"]
        host = lan.host(name)
        host.clock_ahead_s = ahead_s
        Daemon(host, "join", code, "--threads", "1").expect("joined")
    asker = Asker(home)

    def known(state: Status) -> bool:
        stages = state["stages"]
        errors = [stage.get("clock_error_s") for stage in stages]
        return len(stages) == 2 and all(error is not None and error < MAX_ERROR_S for error in errors)

    found = asker.wait("both clocks are known within a millisecond", known)
    for stage in found["stages"]:
        assert abs(stage["clock_offset_s"] - AHEAD_S[stage["node"]]) <= stage["clock_error_s"]
    answer = asker.ask("hello", 12)
    assert "error" not in answer
    written = home.edgepp("trace", "last", "--output", str(home.home / "trace.json"), "--json")
    trace = json.loads(written.stdout)
    assert 0 < trace["clock_error_us"] < MAX_ERROR_S * 1e6
    ways = {name: us for name, us in trace["answer_us"].items() if name.startswith("way")}
    assert len(ways) == 3
    assert all(us > 0 for us in ways.values())  # frames that would arrive before they were sent take no time
    read((home.home / "trace.json").read_text())
