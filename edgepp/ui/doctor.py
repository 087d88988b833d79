"""`edgepp doctor`: one line per check, with the result and, if something is wrong, the next step.

A check is a function that returns a ``Finding`` and does not raise. ``doctor_network`` has the checks of the network.
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
"""Oldest version of glibc for which the wheels of the backends are built."""
_LOW_MEMORY_BYTES = 1 << 30
"""Memory below which the check of memory fails."""
_YEARS = range(2026, 2100)  # a clock before the first year of edgepp was never set
_MAX_CLOCK_STEP_S = 0.5


def run_doctor(peer: str | None, *, as_json: bool, extra: Sequence[Check] = ()) -> bool:
    """Check this machine, then run ``extra``, then check the connection to ``peer`` (``HOST:PORT``), if given.

    A finding of ``extra`` named "coordinator" that is ok means that the coordinator of this machine answers.

    Prints one line per finding as it is made, or with ``as_json`` one list of ``{"check", "ok", "found", "do"}``.
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
        click.secho(f"{wrong} of {len(findings)} checks failed" if wrong else "no check failed", bold=True)
    return wrong == 0


def _findings(peer: str | None, extra: Sequence[Check]) -> Iterator[Finding]:
    from edgepp.ui import doctor_network as network
    from edgepp.wire.address import Address

    address = None if peer is None else Address.parse(peer)
    offset = time.time() - time.monotonic()
    yield versions()
    yield glibc()
    yield importable("mlx", "mlx.core")
    yield from graphics_card()
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
    """Versions of edgepp, Python and the system; Python must be 3.11 to 3.13."""
    found = f"edgepp {edgepp.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("versions", True, found)
    return Finding("versions", False, found, "use Python 3.11, 3.12 or 3.13")


def glibc() -> Finding:
    """Whether the C library is one for which the wheels of the backends are built."""
    if not sys.platform.startswith("linux"):
        return Finding("C library", True, f"not needed on {platform.system()}")
    return judge_glibc(*platform.libc_ver())


def judge_glibc(name: str, number: str) -> Finding:
    """The finding about the C library, whose ``name`` and ``number`` are those of ``platform.libc_ver``."""
    if name != "glibc":
        return Finding(
            "C library",
            False,
            f"{name or 'unknown'}, not glibc",
            "use a distribution with glibc 2.35 or newer, such as Ubuntu 22.04",
        )
    found = f"glibc {number}"
    if tuple(int(part) for part in number.split(".")[:2] if part.isdigit()) >= _GLIBC:
        return Finding("C library", True, found)
    return Finding(
        "C library", False, f"{found} is too old", "use glibc 2.35 or newer, such as of Ubuntu 22.04 or Debian 12"
    )


def importable(package: str, module: str) -> Finding:
    """Whether the package of a backend can be imported."""
    try:
        importlib.import_module(module)
        return Finding(package, True, version(package))
    except PackageNotFoundError:
        return Finding(package, True, "installed, version unknown")
    except (ImportError, OSError) as error:
        return Finding(
            package, False, f"cannot be imported: {error}", "install edgepp again in a new virtual environment"
        )


def graphics_card() -> Iterator[Finding]:
    """Whether MLX computes on an NVIDIA card; no finding where MLX's package for CUDA is not installed."""
    from edgepp.backend.device import cuda_package, device

    package = cuda_package()
    if package is None:
        return
    try:
        found = device()
    except (ImportError, OSError):  # the finding of ``importable`` has the reason
        found = "cpu"
    if found == "cuda":
        yield Finding("CUDA", True, f"{package} {version(package)}")
        return
    again = f"pip install --force-reinstall --no-deps {package}=={version(package)}"
    hint = f"if `nvidia-smi` shows the card, write MLX's files for it once more: `{again}`"
    yield Finding("CUDA", False, f"{package} is installed, but MLX does not compute on a card", hint)


def memory() -> Finding:
    """The memory that a model may use on this machine now."""
    from edgepp.node.memory import usable_memory

    usable = usable_memory()
    found = f"{megabytes(usable)} for a model"
    if usable >= _LOW_MEMORY_BYTES:
        return Finding("memory", True, found)
    return Finding(
        "memory", False, f"only {found}", "close other programs, or only coordinate: `edgepp serve --no-stage`"
    )


def configuration() -> tuple[Known, list[Finding]]:
    """Ids in the configuration, and findings on configuration and pairing. Makes the identity of a new machine."""
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
        do = "give only this user permission to read and write it, or set EDGEPP_HOME to another folder"
        return known, [*findings, Finding("configuration", False, str(error), do)]
    if cluster is None:
        do = "start one with `edgepp serve`, or join one: `edgepp invite` there prints a code for `edgepp join CODE`"
        return known, [*findings, Finding("pairing", None, "this machine belongs to no cluster yet", do)]
    known = Known(identity.node, cluster.id)
    role = "coordinator" if cluster.coordinator.node == identity.node else f"node of {cluster.coordinator.name}"
    return known, [*findings, Finding("pairing", True, f"{role}, cluster {cluster.id}")]


def private_files(folder: Path) -> Finding:
    """Whether only this user can read the keys in ``folder``, or replace them."""
    modes = {folder: 0o022}  # others may list the folder
    modes |= {entry: 0o077 for entry in sorted(folder.iterdir()) if entry.is_file()}
    stats = {entry: entry.stat() for entry in modes}
    if foreign := [entry for entry, found in stats.items() if found.st_uid != os.getuid()]:
        who = f"belongs to user id {stats[foreign[0]].st_uid}"
        return Finding(
            "configuration", False, f"{foreign[0]} {who}", f"run as root: chown {os.getuid()} '{foreign[0]}'"
        )
    if shared := [entry for entry, found in stats.items() if found.st_mode & modes[entry]]:
        names = " ".join(f"'{entry}'" for entry in shared)
        return Finding("configuration", False, f"other users can read or change {names}", f"run: chmod go= {names}")
    return Finding("configuration", True, f"{folder}, readable by this user only")


def clock(moved_s: float) -> Finding:
    """Whether the clock is set; ``moved_s`` is the clock's change against the monotonic clock during these checks."""
    now = datetime.now().astimezone()
    found = now.isoformat(timespec="seconds")
    if now.year not in _YEARS:
        return Finding("clock", False, f"the clock shows {found}", "set the clock, or turn on network time")
    if abs(moved_s) > _MAX_CLOCK_STEP_S:
        what = f"{found}, but the clock jumped by {moved_s:+.1f} s during these checks"
        return Finding(
            "clock",
            False,
            what,
            "stop whatever else sets the clock, such as a second time service or the host of a virtual machine",
        )
    return Finding("clock", True, found)
