"""Report of a selftest that can be sent to others: JSON and Markdown, without personal names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from edgepp import __version__
from edgepp.benchmark.machine import commit, machine
from edgepp.benchmark.markdown_table import table
from edgepp.benchmark.report import rounded
from edgepp.benchmark.target import shown
from edgepp.errors import UsageError
from edgepp.safe_files import write_atomically
from edgepp.selftest.anonymity import Anonymiser
from edgepp.selftest.result import CheckRun

SCHEMA = 1
SIGNS = {True: "ok", False: "**failed**", None: "left open"}
"""How the outcome of a check is written in Markdown."""
_OF_A_NODE = (
    "name", "roles", "backend", "device", "threads", "memory_bytes", "stream_bytes_per_s", "flops_per_s", "version",
)  # fmt: skip


@dataclass
class SelftestReport:
    """What was checked, where, and what was found; filled in as checks end."""

    cluster: bool
    model: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    """State of the cluster that was looked at."""
    runs: list[CheckRun] = field(default_factory=list)
    partial: str = ""
    """Reason why checks are missing; empty if none is."""
    began: str = field(default_factory=lambda: datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"))

    @property
    def failed(self) -> int:
        """Number of checks that failed."""
        return sum(run.result.ok is False for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON, without personal names."""
        nodes = [{name: node.get(name) for name in _OF_A_NODE} for node in self.status.get("nodes", ())]
        whole = {
            "schema": SCHEMA,
            "report": "edgepp selftest",
            "began": self.began,
            "version": __version__,
            "commit": commit(),
            "machine": machine(),
            "of": "cluster" if self.cluster else "this machine",
            "model": shown(self.model),
            "partial": self.partial,
            "failed": self.failed,
            "nodes": nodes,
            "checks": [run.to_dict() for run in self.runs],
        }
        names = [str(node.get("name")) for node in self.status.get("nodes", ())]
        value: dict[str, Any] = rounded(Anonymiser(names).value(whole))
        return value

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write ``selftest.json`` and ``selftest.md`` into ``folder``.

        Raises:
            UsageError: the folder or the files cannot be written.
        """
        value = self.to_dict()
        files = folder / "selftest.json", folder / "selftest.md"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(files[0], (json.dumps(value, indent=2) + "\n").encode())
            write_atomically(files[1], markdown(value).encode())
        except OSError as error:
            raise UsageError(f"{folder} cannot be written: {error.strerror}", "name another folder") from error
        return files


def markdown(report: Mapping[str, Any]) -> str:
    """The report on one page; ``report`` is of ``SelftestReport.to_dict``."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    about = report["machine"]
    checks: Sequence[Mapping[str, Any]] = report["checks"]
    passed = sum(check["ok"] is True for check in checks)
    yield f"# edgepp selftest of {'a cluster' if report['of'] == 'cluster' else 'one machine'}"
    yield ""
    yield f"{passed} of {len(checks)} checks passed, {report['failed']} failed; {report['model']}, {report['began']}."
    if any(check["ok"] is None for check in checks):
        yield "*Left open* is what did not apply or is not certain; the reason ends its line."
    if report["partial"]:
        yield f"**Some checks are missing: {report['partial']}.**"
    yield ""
    yield from table(
        ("check", "result", "found", ">figure", "limit", ">s"),
        [
            (
                f"{check['check']}: {check['about']}",
                SIGNS[check["ok"]],
                check["found"],
                _figure(check),
                _limit(check),
                f"{check['took_s']:g}",
            )
            for check in checks
        ],
    )
    yield ""
    for check in checks:
        if check["hint"]:
            yield f"- **{check['check']}**, next step: {check['hint']}"
            yield ""
    libraries = ", ".join(f"{name} {version}" for name, version in about["libraries"].items())
    yield (
        f"Run from: {about['cpu']}, {about['cpus']} CPUs, {about['memory_gib']:.0f} GiB, {about['system']}, load"
        f" {about['load_1m']:g}; {libraries}; commit {report['commit'] or 'unknown'}."
    )
    if report["nodes"]:
        yield ""
        yield from table(
            ("node", "roles", "runs on", ">threads", ">memory GB", ">GB/s", ">GFLOP/s", "edgepp"),
            [
                (
                    str(node["name"]), ", ".join(node["roles"]) or "spare", f"{node['backend']} on {node['device']}",
                    str(node["threads"]), f"{node['memory_bytes'] / 1e9:.1f}",
                    f"{node['stream_bytes_per_s'] / 1e9:.1f}", f"{node['flops_per_s'] / 1e9:.0f}", str(node["version"]),
                )
                for node in report["nodes"]
            ],
        )  # fmt: skip
    yield ""
    yield "Names of machines and users, addresses, ids and paths are replaced; see `edgepp selftest --help`."


def _figure(check: Mapping[str, Any]) -> str:
    return "" if check["figure"] is None else f"{check['figure']:.3g} {check['unit']}".strip()


def _limit(check: Mapping[str, Any]) -> str:
    return "" if check["limit"] is None else f"{'≥' if check['at_least'] else '≤'} {check['limit']:.3g}"
