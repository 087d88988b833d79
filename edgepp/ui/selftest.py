"""Output of `edgepp selftest`: progress, one line per check, and the report."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from edgepp.errors import EdgeppError
from edgepp.model.fetch import fetch
from edgepp.python_api.cancellable_thread import run_in_thread
from edgepp.selftest.report import SelftestReport
from edgepp.selftest.result import CheckRun
from edgepp.selftest.run import Check, chosen, run
from edgepp.selftest.setting import MODEL, Setting
from edgepp.ui.progress import ByteProgress
from edgepp.ui.screen import say, say_json
from edgepp.ui.step_line import StepLine

_SIGNS = {True: ("ok", "green"), False: ("!!", "red"), None: ("--", "yellow")}


@dataclass(frozen=True)
class SelftestOptions:
    """Options of `edgepp selftest`: the target, the checks, and the folder of the report."""

    cluster: bool = False
    """Whether to check the cluster of this machine, not one made for the selftest."""
    model: str | None = None
    """Model of the cluster made for the selftest; None for smollm2-135m."""
    peer: str | None = None
    """``HOST:PORT`` of the coordinator; None to search for it."""
    only: tuple[str, ...] = ()
    """Names of the checks to run; empty for all."""
    report: str | None = None
    """Folder of the report; None for no files."""
    as_json: bool = False


def selftest(options: SelftestOptions) -> bool:
    """Run the checks and print each result. Returns whether no check failed.

    Raises:
        UsageError: there is no such check, or the report cannot be written.
        ModelError: there is no such model, or the model cannot be fetched.
    """
    checks = chosen(options.only, cluster=options.cluster)
    report = SelftestReport(options.cluster)
    try:
        asyncio.run(_run(options, checks, report))
    except KeyboardInterrupt:
        report.partial = "it was stopped"
        _deliver(options, report)
        raise
    _deliver(options, report)
    return not report.failed


async def _run(options: SelftestOptions, checks: list[Check], report: SelftestReport) -> None:
    step = ["starting"]
    with StepLine(as_json=False) as line:
        setting = Setting(
            cluster=options.cluster,
            model=options.model,
            peer=options.peer,
            say=lambda text: line.show(step[0], text, {}),
        )
        await _fetch(options.model or MODEL)
        results = run(checks, setting, lambda check: step.__setitem__(0, check.name))
        try:
            if options.cluster:
                report.status = await (await setting.subject()).status()
            async for one in results:
                report.runs.append(one)
                if not options.as_json:
                    line.hide()
                    _show(one)
            report.model = await setting.model()
            with suppress(EdgeppError):  # the cluster may be what failed
                report.status = report.status or await (await setting.subject()).status()
        finally:
            await results.aclose()
            await setting.close()


async def _fetch(model: str) -> None:
    """Fetch the model of the selftest's own cluster, unless it is on this disk.

    Raises:
        ModelError: there is no such model, or it cannot be fetched now.
    """
    with ByteProgress() as progress:
        await run_in_thread(lambda _: fetch(model, on_progress=progress), lambda _: None)


def _show(one: CheckRun) -> None:
    sign, colour = _SIGNS[one.result.ok]
    click.secho(f"{sign}  ", fg=colour, nl=False)
    against = f" [{one.result.against}]" if one.result.against else ""
    say(f"{one.name}: {one.result.found}{against} ({one.took_s:.1f} s)")
    if one.result.hint:
        say(f"    → {one.result.hint}")


def _deliver(options: SelftestOptions, report: SelftestReport) -> None:
    files = report.write(Path(options.report).expanduser()) if options.report else ()
    if options.as_json:
        say_json(report.to_dict())
        return
    if not report.partial:
        wrong, count = report.failed, len(report.runs)
        say(f"{wrong} of {count} checks failed" if wrong else f"none of {count} checks failed", bold=True)
    for file in files:
        say(f"report: {file}")
