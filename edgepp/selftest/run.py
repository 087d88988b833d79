"""The list of checks, and their run: one after the other, each within its time; a failure names the next step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from edgepp.errors import EdgeppError, UsageError
from edgepp.selftest import encryption, exactness, faults, speed
from edgepp.selftest.result import CheckResult, CheckRun
from edgepp.selftest.setting import Setting


@dataclass(frozen=True)
class Check:
    """One check: what it looks at, what to do where it fails, and the seconds that it may take."""

    name: str
    about: str
    run: Callable[[Setting], Awaitable[CheckResult]]
    hint: str
    limit_s: float = 300.0
    cluster_only: bool = False


_LOGS = "`edgepp doctor` here, and `edgepp service logs` or the output of `edgepp serve` and `join`, say what happened"

CHECKS: Sequence[Check] = (
    Check(
        "hops", "hops and links", speed.hops,
        "use a cable or a nearer access point for that machine; `edgepp doctor --peer HOST:5700` there measures it",
    ),
    Check(
        "exact", "float32 tokens against mlx-lm", exactness.exact,
        "an answer may be wrong: send this report, with --report FOLDER",
    ),
    Check(
        "accuracy", "default accuracy against float32", exactness.perplexity,
        "use --exact on this machine, and send this report, with --report FOLDER",
    ),
    Check(
        "speed", "decode and prefill against one process", speed.rates,
        "`edgepp status` says what each stage takes; `edgepp drain NODE` leaves the slowest machine out",
    ),
    Check(
        "plan", "decode against what `edgepp plan` predicts", speed.prediction,
        "end other programs on the nodes and start edgepp there again: what was measured beside them is measured again",
    ),
    Check(
        "encryption", "what a listener sees", encryption.encryption,
        "ask nothing private here; install one version of edgepp on all machines, and send this report if that fails",
    ),
    Check("kill", "a stage killed in mid-answer", faults.killed_stage, _LOGS),
    Check("sleep", "a node that sleeps in mid-answer", faults.sleeping_node, _LOGS),
    Check("drain", "a node drained in mid-answer", faults.drained_node, _LOGS, cluster_only=True),
)  # fmt: skip


def chosen(only: Sequence[str], *, cluster: bool) -> list[Check]:
    """The checks named in ``only``, or all that apply.

    Raises:
        UsageError: there is no such check.
    """
    names = [check.name for check in CHECKS]
    for name in only:
        if name not in names:
            raise UsageError(f"there is no check '{name}'", f"the checks are {', '.join(names)}")
    return [
        check
        for check in CHECKS
        if (check.name in only if only else True) and (cluster or not check.cluster_only or check.name in only)
    ]


async def run(
    checks: Sequence[Check], setting: Setting, on_begin: Callable[[Check], None]
) -> AsyncGenerator[CheckRun, None]:
    """Each check's result as soon as it is known; a check that ends by an error has failed."""
    for check in checks:
        began_s = time.monotonic()
        on_begin(check)
        setting.say(check.about)
        try:
            async with asyncio.timeout(check.limit_s):
                result = await check.run(setting)
        except TimeoutError:
            result = CheckResult(False, f"not finished within {check.limit_s:.0f} s")
        except EdgeppError as error:
            result = CheckResult(False, str(error), hint=error.hint or "")
        result = replace(result, hint=(result.hint or check.hint) if result.ok is False else "")
        yield CheckRun(check.name, check.about, result, time.monotonic() - began_s)
