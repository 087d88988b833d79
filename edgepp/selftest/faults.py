"""Checks of faults, each in the middle of an answer: a killed stage, a node that sleeps, a node that is drained."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psutil

from edgepp.coordinator.client import connect_coordinator
from edgepp.errors import EdgeppError
from edgepp.python_api.cancellable_thread import run_in_thread
from edgepp.selftest.own_cluster import NODE, signal_all
from edgepp.selftest.result import CheckResult
from edgepp.selftest.setting import Setting
from edgepp.selftest.subject import Subject

PROMPT = "Once upon a time, in a village by the sea, there lived"
TOKENS = 96
AFTER = 8
"""Pieces of text before the fault."""
MAX_PAUSE_S = 30.0
"""Longest good pause of an answer: a silent node counts as gone after 10 s, and the rest is loading and rebuilding."""


async def killed_stage(setting: Setting) -> CheckResult:
    """A stage process of the selftest's own cluster, killed in the middle of an answer: tokens and pause."""
    cluster = await setting.own()
    status = await cluster.status()
    pid = next(int(stage["pid"]) for stage in status["stages"] if stage["node"] == NODE)
    return await _disturbed(setting, cluster, "a stage process was killed", psutil.Process(pid).kill)


async def sleeping_node(setting: Setting) -> CheckResult:
    """A node of the selftest's own cluster, stopped in the middle of an answer and woken after it."""
    cluster = await setting.own()
    stopped = cluster.processes(NODE)

    try:
        found = await _disturbed(setting, cluster, "a node slept", lambda: signal_all(stopped, psutil.Process.suspend))
    finally:
        signal_all(stopped, psutil.Process.resume)
    setting.say("sleep: waiting for the node to come back")
    began = asyncio.get_running_loop().time()
    await cluster.ready()
    back_s = asyncio.get_running_loop().time() - began
    details = {**found.details, "back_s": back_s}
    line = f"{found.found}; it held layers again {back_s:.1f} s after it woke"
    return CheckResult(found.ok, line, found.figure, found.limit, found.unit, details=details)


async def drained_node(setting: Setting) -> CheckResult:
    """A node drained in the middle of an answer, as `edgepp drain` does, and let back: tokens and pause."""
    subject = await setting.subject()
    status = await subject.status()
    coordinator = status["coordinator"]
    node = next((str(stage["node_id"]) for stage in status["stages"] if stage["node"] != coordinator), None)
    if node is None:
        return CheckResult(None, "left out: no other node than the coordinator holds layers")
    loop = asyncio.get_running_loop()
    calls: list[asyncio.Task[Any]] = []

    def begin() -> None:
        calls.append(loop.create_task(_drain(subject, node, undo=False)))

    try:
        found = await _disturbed(setting, subject, "a node was drained", begin)
        if calls:
            await calls[0]
        return found
    except EdgeppError as error:
        return CheckResult(None, f"left out: {error}")
    finally:
        if calls:
            await _drain(subject, node, undo=True)
            setting.say("drain: waiting for the node to hold layers again")
            await subject.ready({str(stage["node"]) for stage in status["stages"]})


async def _drain(subject: Subject, node: str, *, undo: bool) -> None:
    """Move the layers of ``node`` to the others, or let it run layers again."""

    def call() -> None:
        with subject.at_home(), connect_coordinator(subject.peers) as client:
            client.call("drain", {"node": node, "undo": undo})

    await run_in_thread(lambda _: call(), lambda _: None)


async def _disturbed(setting: Setting, subject: Subject, what: str, disturb: Callable[[], None]) -> CheckResult:
    """An answer with ``disturb`` in its middle, against the same answer without."""
    setting.say(f"{what}: the answer without it")
    expected = await subject.ask(PROMPT, TOKENS)
    setting.say(f"{what}: the answer with it")
    answer = await subject.ask(PROMPT, TOKENS, lambda piece: disturb() if piece == AFTER else None)
    pause_s = answer.longest_gap_s(AFTER)
    equal = sum(one == other for one, other in zip(expected.tokens, answer.tokens, strict=False))
    recoveries = [{"how": one.how, "pause_s": one.pause_s} for one in answer.timing.recoveries]
    line = f"{what} in mid-answer: {equal} of {TOKENS} tokens as without it, longest pause {pause_s:.2f} s"
    details = {"equal": equal, "tokens": TOKENS, "pause_s": pause_s, "recoveries": recoveries}
    found = CheckResult.held_to(line, pause_s, MAX_PAUSE_S, "s", details=details)
    if not subject.own and not (await subject.status())["exact"]:
        return found  # default accuracy: near-ties may fall differently in what is computed again
    return found if equal == TOKENS else CheckResult(False, line, pause_s, MAX_PAUSE_S, "s", details=details)
