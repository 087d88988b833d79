"""Findings of `edgepp doctor`: what each check reports, and the next step."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import types
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from edgepp.backend import device
from edgepp.cluster.discovery.announcement import Announcement
from edgepp.cluster.discovery.multicast_check import Hearing
from edgepp.cluster.discovery.network_interfaces import interfaces
from edgepp.cluster.identity import load_identity, new_cluster, save_cluster
from edgepp.errors import UsageError
from edgepp.ui import doctor, doctor_network, peers
from edgepp.ui.finding import Finding, Known
from edgepp.wire.address import Address

CLUSTER, NODE = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def quiet_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet leaves this machine."""
    monkeypatch.setattr(doctor_network, "listen", lambda wait_s: (Hearing("en0", "192.0.2.1", own=True),))
    monkeypatch.setattr(doctor_network, "Browser", Deaf)


class Deaf:
    def find(self, accept: object, wait_s: float) -> tuple[Announcement, ...]:
        return ()

    def announcements(self) -> tuple[Announcement, ...]:
        return (record("10.0.0.9", cluster="f" * 16),)

    def close(self) -> None:
        return


def record(host: str, cluster: str = CLUSTER, node: str = "1" * 16) -> Announcement:
    return Announcement(cluster, node, "mini", (Address(host, 5720),), (), "0.1.0")


@pytest.mark.parametrize(
    ("name", "number", "ok"),
    [("glibc", "2.35", True), ("glibc", "2.9", False), ("glibc", "3.0", True), ("musl", "1.2", False), ("", "", False)],
)
def test_the_c_library_must_be_a_recent_glibc(name: str, number: str, ok: bool) -> None:
    finding = doctor.judge_glibc(name, number)
    assert finding.ok is ok
    assert bool(finding.do) is not ok


def test_a_backend_that_cannot_be_imported_is_reported() -> None:
    assert doctor.importable("numpy", "numpy").ok
    missing = doctor.importable("mlx", "edgepp.no_such_module")
    assert missing.ok is False
    assert "no_such_module" in missing.found
    assert missing.do


@pytest.mark.parametrize(("moved_s", "ok"), [(0.01, True), (-3.0, False), (3600.0, False)])
def test_a_clock_that_jumps_is_reported(moved_s: float, ok: bool) -> None:
    assert doctor.clock(moved_s).ok is ok


def test_keys_that_others_can_read_are_reported(tmp_path: Path) -> None:
    key = tmp_path / "identity.json"
    key.touch(0o600)
    tmp_path.chmod(0o755)
    assert doctor.private_files(tmp_path).ok
    key.chmod(0o640)
    finding = doctor.private_files(tmp_path)
    assert finding.ok is False
    assert str(key) in finding.found
    assert finding.do == f"run: chmod go= '{key}'"
    key.chmod(0o600)
    tmp_path.chmod(0o777)
    assert doctor.private_files(tmp_path).ok is False
    tmp_path.chmod(0o700)


def test_the_configuration_is_read(home: Path) -> None:
    from edgepp.cluster.identity import load_identity, new_cluster, save_cluster

    known, findings = doctor.configuration()
    assert [(finding.check, finding.ok) for finding in findings] == [
        ("configuration", True),
        ("identity", True),
        ("pairing", None),
    ]
    identity = load_identity()
    assert known == Known(identity.node, None)
    cluster = new_cluster(identity)
    save_cluster(cluster)
    known, findings = doctor.configuration()
    assert known == Known(identity.node, cluster.id)
    assert all(finding.ok for finding in findings)
    (home / "cluster.json").write_text("{")
    assert peers.checks(None) == ()
    known, findings = doctor.configuration()
    assert known == Known(identity.node, None)
    assert findings[-1].ok is False
    assert findings[-1].do


@pytest.fixture
def listener() -> Iterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Address("127.0.0.1", server.getsockname()[1])


def test_a_port_that_listens_is_reached_and_one_that_does_not_is_explained(listener: Address) -> None:
    assert doctor_network.reach(listener).ok
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refused = doctor_network.reach(Address("127.0.0.1", bound.getsockname()[1]))
    assert refused.ok is False
    assert "nothing listens" in refused.found
    assert "edgepp serve" in refused.do


@pytest.mark.parametrize(
    ("error", "platform", "words"),
    [
        (TimeoutError(), "linux", "firewall"),
        (socket.gaierror(-2, "Name or service not known"), "linux", "is unknown"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "linux", "no route to it"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "darwin", "Privacy & Security > Local Network"),
        (OSError(errno.EMFILE, "Too many open files"), "linux", "Too many open files"),
    ],
)
def test_why_a_peer_cannot_be_reached(
    error: OSError, platform: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    found, do = doctor_network.explain(error, Address("10.0.0.9", 5720))
    assert words in found + do
    assert do


@pytest.mark.parametrize(
    ("hearing", "ok", "words"),
    [
        (Hearing("en0", "10.0.0.1", own=True, others=["10.0.0.2", "10.0.0.3"]), True, "2 other machines"),
        (Hearing("en0", "10.0.0.1", own=True), None, "no other machine"),
        (Hearing("en0", "10.0.0.1"), False, "not even this machine"),
        (Hearing("en0", "10.0.0.1", error=OSError(errno.EPERM, "not permitted")), False, "sending is not permitted"),
        (Hearing("en0", "10.0.0.1", error=OSError(errno.ENETUNREACH, "Network is unreachable")), False, "unreachable"),
    ],
)
def test_findings_about_multicast(hearing: Hearing, ok: bool | None, words: str) -> None:
    (finding,) = doctor_network.judge_hearings([hearing])
    assert finding.ok is ok
    assert words in finding.found
    assert "en0" in finding.check
    assert bool(finding.do) is not ok


def test_a_missing_permission_on_a_mac_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    hearing = Hearing("en0", "10.0.0.1", error=OSError(errno.EHOSTUNREACH, "No route to host"))
    (finding,) = doctor_network.judge_hearings([hearing])
    assert finding.ok is False
    assert "Local Network" in finding.do


def test_a_deaf_docker_interface_is_nothing_wrong_when_others_are_heard() -> None:
    wifi, docker = Hearing("en0", "10.0.0.1", own=True, others=["10.0.0.2"]), Hearing("docker0", "172.17.0.1")
    assert [finding.ok for finding in doctor_network.judge_hearings([wifi, docker])] == [True, None]


def test_a_port_that_cannot_be_opened_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(wait_s: float) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(doctor_network, "listen", taken)
    (finding,) = doctor_network.multicast()
    assert finding.ok is False
    assert "--peer" in finding.do


def test_the_coordinator_of_this_cluster_is_told_from_others() -> None:
    known = Known(NODE, CLUSTER)
    stranger = record("10.0.0.8", cluster="f" * 16)
    assert doctor_network.judge_coordinators([stranger, record("10.0.0.9")], known).ok
    missing = doctor_network.judge_coordinators([stranger], known)
    assert missing.ok is None
    assert "10.0.0.8:5720" in missing.found
    assert "--peer" in missing.do
    assert doctor_network.judge_coordinators([], Known(NODE, None)).ok is None


@pytest.mark.usefixtures("home", "quiet_network")
@pytest.mark.parametrize("ok", [True, False])
def test_a_coordinator_that_answers_is_not_called_missing(
    ok: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on the machine of `edgepp serve`, if it listens on loopback or the network passes no multicast."""
    _memory(monkeypatch, 8 << 30)
    save_cluster(new_cluster(load_identity()))
    doctor.run_doctor(None, as_json=True, extra=[lambda: Finding("coordinator", ok, "as it is", "do it")])
    found = [one for one in json.loads(capsys.readouterr().out) if one["check"] == "announcements"][-1]
    assert ("the coordinator answers" in found["found"]) is ok
    assert ("is not heard" in found["found"]) is not ok
    assert ("edgepp serve" in found["do"]) is not ok


def test_a_copied_node_id_is_reported() -> None:
    known, own = Known(NODE, CLUSTER), ["10.0.0.1", "fe80::1%en0"]
    assert doctor_network.judge_ids([record("10.0.0.9"), record("10.0.0.1", node=NODE)], known, own).ok
    assert doctor_network.judge_ids([record("fe80::1%4", node=NODE)], known, own).ok
    copied = doctor_network.judge_ids([record("10.0.0.9", node=NODE)], known, own)
    assert copied.ok is False
    assert "10.0.0.9" in copied.found
    assert copied.do


def _memory(monkeypatch: pytest.MonkeyPatch, usable_bytes: int) -> None:
    module = types.ModuleType("edgepp.node.memory")
    module.__dict__["usable_memory"] = lambda: usable_bytes
    monkeypatch.setitem(sys.modules, "edgepp.node.memory", module)


def test_little_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    _memory(monkeypatch, 8 << 30)
    assert doctor.memory() == Finding("memory", True, "8.59 GB for a model")
    _memory(monkeypatch, 100 << 20)
    assert doctor.memory().ok is False


@pytest.mark.usefixtures("home", "quiet_network")
def test_all_findings_as_json(
    listener: Address, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _memory(monkeypatch, 8 << 30)
    accepted = Finding("key", True, "accepted")
    all_well = doctor.run_doctor(str(listener), as_json=True, extra=[lambda: accepted])
    findings = json.loads(capsys.readouterr().out)
    assert all(set(finding) == {"check", "ok", "found", "do"} for finding in findings)
    assert all(finding["ok"] in (True, False, None) and finding["found"] for finding in findings)
    assert all(finding["do"] for finding in findings if finding["ok"] is False)
    checks = {finding["check"]: finding["ok"] for finding in findings}
    assert {"versions", "mlx", "onnxruntime", "memory", "identity", "announcements", "node id", "clock"} <= set(checks)
    assert checks["key"] is checks[f"connection to {listener}"] is checks["port 5353"] is True
    assert checks["multicast on en0 (192.0.2.1)"] is None
    assert all_well is (False not in checks.values())


@pytest.mark.usefixtures("home", "quiet_network")
def test_all_findings_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _memory(monkeypatch, 8 << 30)
    broken = Finding("key", False, "refused", "invite it again")
    assert doctor.run_doctor(None, as_json=False, extra=[lambda: broken]) is False
    out = capsys.readouterr().out
    assert "!!  key: refused\n      → invite it again\n" in out
    assert "checks failed" in out


def test_an_invalid_address_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        doctor.run_doctor("nowhere", as_json=True)


def test_the_addresses_of_this_machine_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = doctor_network.addresses()
    assert finding.ok is bool(interfaces())
    monkeypatch.setattr(doctor_network, "interfaces", tuple)
    assert doctor_network.addresses().ok is False


def test_files_of_another_user_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    finding = doctor.private_files(tmp_path)
    assert finding.ok is False
    assert f"user id {owner}" in finding.found


def test_a_card_that_mlx_does_not_see_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.cuda_package() is None
    assert not list(doctor.graphics_card())
    monkeypatch.setattr(device, "cuda_package", lambda: "mlx")  # a package that is installed
    (unseen,) = doctor.graphics_card()
    assert (unseen.check, unseen.ok) == ("CUDA", False)
    assert "--force-reinstall --no-deps mlx==" in unseen.do
    monkeypatch.setattr(device, "device", lambda: "cuda")
    (seen,) = doctor.graphics_card()
    assert seen == Finding("CUDA", True, f"mlx {version('mlx')}")
