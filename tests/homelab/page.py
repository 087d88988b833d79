"""The result of a home lab on one page."""

from __future__ import annotations

from collections.abc import Iterator

from edgepp.benchmark.markdown_table import table
from edgepp.selftest.anonymity import Anonymiser
from edgepp.selftest.report import SIGNS
from tests.homelab.lab import Lab


def page(lab: Lab) -> str:
    """The page, in Markdown, without the names of the machines."""
    return Anonymiser(remote.name for remote in lab.remotes).text("\n".join(_lines(lab)) + "\n")


def failures(lab: Lab) -> int:
    """Number of checks that failed on any machine."""
    return sum(int(report["failed"]) for report in (lab.cluster, *lab.alone.values()))


def _lines(lab: Lab) -> Iterator[str]:
    total_s = sum(lab.took_s.values())
    steps = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in lab.took_s.items())
    yield f"# Home lab: {lab.model} on {len(lab.remotes)} machines"
    yield ""
    yield f"{failures(lab)} checks failed; from nothing to the report in {total_s:.0f} s ({steps})."
    yield ""
    yield from table(
        ("machine", "system", "Python", ">disk MB", ">memory MB", "alone"),
        [
            (remote.name, facts.system, facts.python.rpartition("/")[2], str(facts.disk_mb), str(facts.memory_mb),
             _alone(lab, remote.name))
            for remote in lab.remotes
            for facts in [lab.facts[remote.name]]
        ],
    )  # fmt: skip
    yield ""
    checks = lab.cluster["checks"]
    yield from table(("check", "result", "found"), [(one["check"], SIGNS[one["ok"]], one["found"]) for one in checks])


def _alone(lab: Lab, name: str) -> str:
    """Outcome of the checks of one machine; those of the first are in the cluster's report."""
    checks = lab.alone.get(name, lab.cluster)["checks"]
    return "; ".join(f"{one['check']} {SIGNS[one['ok']]}" for one in checks if one["check"] == "accuracy")
