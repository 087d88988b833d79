"""`edgepp doctor`: one line a check, each with what was found and, when it is wrong, what to do.

A check is a function that returns a `Finding` and raises nothing. Those of the network are in `doctor_network`.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

import edgepp
from edgepp.errors import EdgeppError
from edgepp.ui.finding import Check, Finding, Known
from edgepp.ui.progress import megabytes
from edgepp.ui.screen import say, say_json

_GLIBC = (2, 35)
_LOW_MEMORY_BYTES = 1 << 30
_YEARS = range(2026, 2100)  # edgepp's first year: a clock before it was never set
_STEP_S = 0.5


def run_doctor(peer: str | None, *, as_json: bool, extra: Sequence[Check] = ()) -> bool:
    """Check this machine, and the path to ``peer`` (``HOST:PORT``) when there is one; ``extra`` come in between.

    One of ``extra`` that is called "coordinator" and is well says that this machine's coordinator answers.

    Prints a line a finding as it is made, or with ``as_json`` one list of ``{"check", "ok", "found", "do"}``.
    Returns whether nothing is wrong.

    Raises:
        UsageError: ``peer`` is not an address.
    """
    findings = []
    for finding in _findings(peer, extra):
        findings.append(finding)
        if not as_json:
            _show(finding)
    wrong = sum(finding.ok is False for finding in findings)
    if as_json:
        say_json([asdict(finding) for finding in findings])
    else:
        click.secho(f"{wrong} of {len(findings)} checks found something wrong" if wrong else "all is well", bold=True)
    return wrong == 0


def _findings(peer: str | None, extra: Sequence[Check]) -> Iterator[Finding]:
    from edgepp.ui import doctor_network as network
    from edgepp.wire.transport import Address

    address = None if peer is None else Address.parse(peer)
    offset = time.time() - time.monotonic()
    yield versions()
    yield glibc()
    yield importable("mlx", "mlx.core")
    yield importable("onnxruntime", "onnxruntime")
    yield memory()
    known, about = configuration()
    yield from about
    yield network.addresses()
    yield from network.multicast()
    answers = False
    for check in extra:
        finding = check()
        answers = answers or (finding.check == "coordinator" and finding.ok is True)
        yield finding
    yield from network.coordinators(known, answers=answers)
    if address is not None:
        yield network.reach(address)
    yield clock(time.time() - time.monotonic() - offset)


def _show(finding: Finding) -> None:
    sign, colour = {True: ("ok", "green"), False: ("!!", "red"), None: ("--", "yellow")}[finding.ok]
    click.secho(f"{sign}  ", fg=colour, nl=False)
    say(f"{finding.check}: {finding.found}")
    if finding.do:
        say(f"      → {finding.do}")


def versions() -> Finding:
    """Which edgepp runs on which Python and system."""
    found = f"edgepp {edgepp.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("versions", True, found)
    return Finding("versions", False, found, "use Python 3.11, 3.12 or 3.13")


def glibc() -> Finding:
    """Whether the C library is one that the wheels are built for."""
    if not sys.platform.startswith("linux"):
        return Finding("C library", True, f"not asked for on {platform.system()}")
    return judge_glibc(*platform.libc_ver())


def judge_glibc(name: str, number: str) -> Finding:
    """``name`` and ``number`` as `platform.libc_ver` gives them."""
    if name != "glibc":
        return Finding("C library", False, f"{name or 'one'} that is not glibc", "use a distribution with glibc 2.35+")
    found = f"glibc {number}"
    if tuple(int(part) for part in number.split(".")[:2] if part.isdigit()) >= _GLIBC:
        return Finding("C library", True, found)
    return Finding("C library", False, f"{found} is too old", "use glibc 2.35+, such as Ubuntu 22.04 or Debian 12")


def importable(package: str, module: str) -> Finding:
    """Whether a backend's package works here."""
    try:
        importlib.import_module(module)
        return Finding(package, True, version(package))
    except PackageNotFoundError:
        return Finding(package, True, "there, without a version")
    except (ImportError, OSError) as error:
        return Finding(package, False, f"cannot be imported: {error}", "install edgepp again in a fresh environment")


def memory() -> Finding:
    """How much memory a model may use."""
    from edgepp.node.resources import usable_memory

    usable = usable_memory()
    found = f"{megabytes(usable)} for a model"
    if usable >= _LOW_MEMORY_BYTES:
        return Finding("memory", True, found)
    return Finding("memory", False, f"only {found}", "close other programs; `edgepp serve --no-stage` needs little")


def configuration() -> tuple[Known, list[Finding]]:
    """What the configuration says, and whether it is sound. Makes this machine's identity if there is none."""
    from edgepp.cluster.identity import load_cluster, load_identity
    from edgepp.cluster.state_files import config_dir

    known = Known(None, None)
    findings: list[Finding] = []
    try:
        findings.append(private_files(config_dir()))
        identity = load_identity()
        known = Known(identity.node, None)
        findings.append(Finding("identity", True, f"{identity.name}, node {identity.node}"))
        cluster = load_cluster()
    except EdgeppError as error:
        return known, [*findings, Finding("configuration", False, str(error), error.hint)]
    except OSError as error:
        do = "let this user read and write it, and nobody else, or set EDGEPP_HOME to another folder"
        return known, [*findings, Finding("configuration", False, str(error), do)]
    if cluster is None:
        do = "`edgepp serve` starts one; `edgepp invite` there gives the code for `edgepp join CODE` here"
        return known, [*findings, Finding("pairing", None, "belongs to no cluster yet", do)]
    known = Known(identity.node, cluster.id)
    role = "coordinator" if cluster.coordinator.node == identity.node else f"member, with {cluster.coordinator.name}"
    return known, [*findings, Finding("pairing", True, f"cluster {cluster.id}, {role}")]


def private_files(folder: Path) -> Finding:
    """Whether nobody but this user can read the keys in ``folder``, or put others there."""
    modes = {folder: 0o022}  # to list it does no harm
    modes |= {entry: 0o077 for entry in sorted(folder.iterdir()) if entry.is_file()}
    stats = {entry: entry.stat() for entry in modes}
    if foreign := [entry for entry, found in stats.items() if found.st_uid != os.getuid()]:
        who = f"belongs to user {stats[foreign[0]].st_uid}"
        return Finding("configuration", False, f"{foreign[0]} {who}", f"make it this user's own: {os.getuid()}")
    if shared := [entry for entry, found in stats.items() if found.st_mode & modes[entry]]:
        names = " ".join(f"'{entry}'" for entry in shared)
        return Finding("configuration", False, f"not this user's alone: {names}", f"run: chmod go= {names}")
    return Finding("configuration", True, f"{folder}, for this user alone")


def clock(moved_s: float) -> Finding:
    """Whether the clock is set; ``moved_s`` is how far it moved against the monotonic one during these checks."""
    now = datetime.now().astimezone()
    found = now.isoformat(timespec="seconds")
    if now.year not in _YEARS:
        return Finding("clock", False, f"it is not {found}", "set the clock, or turn on network time")
    if abs(moved_s) > _STEP_S:
        what = f"{found}, but it jumped by {moved_s:+.1f} s during these checks"
        return Finding(
            "clock", False, what, "see what else sets the clock: two time services, a virtual machine's host"
        )
    return Finding("clock", True, found)
