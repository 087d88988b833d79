"""`edgepp selftest` as a user runs it: on a small model, in full, to its report, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.builders.checkpoints import Checkpoints
from tests.cluster import EDGEPP, Machine, edgepp, serving, wait_for
from tests.waiting import PATIENCE_S, eventually

WEIGHTS = "model.safetensors"
CHECKS = ("hops", "exact", "kill", "encryption")


@pytest.fixture
def model(checkpoints: Checkpoints) -> Path:
    return checkpoints(replace(TINY, layers=4))


def is_good(check: dict[str, Any]) -> bool:
    """Whether a check passed, or failed for nothing but a time, which a busy machine may need."""
    is_slow = check["unit"] in ("ms", "s") and check["figure"] > check["limit"]
    return check["ok"] is True or is_slow


def test_a_cluster_of_its_own_passes_and_is_reported(model: Path, tmp_path: Path) -> None:
    only = [word for name in CHECKS for word in ("--only", name)]
    done = edgepp("selftest", "-m", str(model), *only, "--report", str(tmp_path), "--json", timeout_s=4 * PATIENCE_S)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "selftest.json").read_text())
    assert {check["check"]: is_good(check) for check in told["checks"]} == dict.fromkeys(CHECKS, True)
    passed = [check["ok"] for check in told["checks"]].count(True)
    assert not any(check["hint"] for check in told["checks"] if check["ok"])
    assert done.returncode == (0 if passed == 4 else 1)
    found = {check["check"]: check["details"] for check in told["checks"]}
    assert len(found["exact"]["ranges"]) == 2
    assert found["exact"]["pipeline"] == found["exact"]["tokens"]
    assert found["kill"]["equal"] == found["kill"]["tokens"]
    assert found["encryption"]["relayed_bytes"] > 1000
    assert set(found["encryption"]["offered"].values()) == {"CURVE"}
    assert f"{passed} of 4 checks passed" in (tmp_path / "selftest.md").read_text()


def test_a_real_cluster_is_asked_drained_and_found_out_where_its_weights_are_others(
    tmp_path: Path,
) -> None:
    shape = replace(TINY, layers=4)
    model, other = (make_checkpoint(tmp_path / f"weights-{seed}", shape, seed=seed) for seed in (0, 7))
    one, two = Machine(tmp_path, "one"), Machine(tmp_path, "two")
    with serving(one, model, "--exact") as (_, address):
        code = one.json("invite", "--json")["code"]
        with two.running("join", code, "--peer", address, "--listen", "127.0.0.1:0") as joined:
            joined.until("joined")
            wait_for(one, 2)
            only = [word for name in ("hops", "exact", "drain", "encryption") for word in ("--only", name)]
            asked = ("selftest", "--cluster", "-m", str(model), *only, "--json")
            first = one.run(*asked, timeout_s=4 * PATIENCE_S)
            (other / WEIGHTS).replace(model / WEIGHTS)  # the cluster keeps the weights that it has loaded
            arguments = ("selftest", "--cluster", "-m", str(model), "--only", "exact")
            done = one.run(*arguments, timeout_s=4 * PATIENCE_S)
    told = json.loads(first.stdout)
    assert "checks" in told, first
    assert done.returncode == 1
    assert "!!  exact: 2 of 2 layer ranges give the 24 tokens of mlx-lm in float32; the pipeline 0 of 24" in done.stdout
    assert "→ this machine computes all layers rightly, so another one has damaged or other weights" in done.stdout
    found = {check["check"]: check for check in told["checks"]}
    assert {name: is_good(check) for name, check in found.items()} == dict.fromkeys(found, True)
    assert len(found["hops"]["details"]["stages"]) == 2
    assert len(found["exact"]["details"]["ranges"]) == 2
    assert found["drain"]["details"]["equal"] == found["drain"]["details"]["tokens"]
    assert set(found["encryption"]["details"]["offered"]) == {"coordinator", "stage 0", "stage 1"}


def test_an_unknown_check_and_a_missing_model_are_plain_errors() -> None:
    for arguments, told in ((("--only", "speeed"), "there is no check 'speeed'"), (("-m", "./none"), "no folder")):
        done = edgepp("selftest", *arguments)
        assert done.returncode in (1, 2)
        assert told in done.stderr


@pytest.fixture
def running(model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [*EDGEPP, "selftest", "-m", str(model), "--report", str(tmp_path)]
    process = subprocess.Popen(
        command, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_ends_all_that_was_started(running: subprocess.Popen[str], tmp_path: Path) -> None:
    def members() -> list[psutil.Process]:
        return psutil.Process(running.pid).children(recursive=True)

    started = eventually("both members", lambda: found if len(found := members()) >= 2 else None)
    running.send_signal(signal.SIGINT)
    assert running.wait(PATIENCE_S) == 130
    assert not psutil.wait_procs(started, PATIENCE_S)[1]
    assert json.loads((tmp_path / "selftest.json").read_text())["partial"] == "it was stopped"
    assert not list(tmp_path.glob("edgepp-selftest-*"))
