"""The lock against sleep: held while there is work, with real child processes in place of the system's commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from edgepp.host_system import sleep_inhibitor, systemd
from edgepp.host_system.sleep_inhibitor import LINGER_S, RETRY_S, SleepInhibitor, lock_commands
from tests.waiting import eventually

HOLDS = ["sh", "-c", "exec cat"]
REFUSES = ["sh", "-c", "echo Access denied >&2; exit 1"]


class Clock:
    """A clock that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def children() -> list[psutil.Process]:
    """The commands that hold the lock; other tests' processes are children of this one too."""
    return [child for child in psutil.Process().children() if child.name() in ("sh", "cat")]


def settled(lock: SleepInhibitor, state: str) -> None:
    def reached() -> bool:
        lock.update(working=True)
        return lock.state == state and (state != "held" or len(children()) == 1)

    eventually(f"the lock is {state}", reached)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_lock_is_held_while_there_is_work_and_a_little_longer(clock: Clock) -> None:
    lock = SleepInhibitor(commands=lambda: [HOLDS], now_s=clock)
    lock.update(working=False)
    assert (lock.state, children()) == ("released", [])
    lock.update(working=True)
    assert lock.state == "held"
    (child,) = children()
    clock.now_s += LINGER_S / 2
    lock.update(working=False)
    assert lock.state == "held"
    clock.now_s += LINGER_S
    lock.update(working=False)
    assert (lock.state, child.is_running(), children()) == ("released", False, [])


def test_a_lock_is_released_at_once_at_the_end(clock: Clock) -> None:
    lock = SleepInhibitor(commands=lambda: [HOLDS], now_s=clock)
    lock.update(working=True)
    lock.release()
    assert (lock.state, children()) == ("released", [])
    lock.release()


def test_the_next_weaker_command_follows_a_refusal(clock: Clock) -> None:
    lock = SleepInhibitor(commands=lambda: [REFUSES, ["/nonexistent"], HOLDS], now_s=clock)
    eventually("the strongest is refused", lambda: not lock.update(working=True) and "cat" in commands())
    assert lock.state == "held"
    lock.release()


def commands() -> list[str]:
    return [child.cmdline()[0] for child in children() if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("found", [[], [REFUSES], [["/nonexistent"]]], ids=["none", "refused", "not there"])
def test_without_a_lock_nothing_fails_and_it_is_tried_again_later(found: Sequence[Sequence[str]], clock: Clock) -> None:
    tries: list[int] = []

    def look() -> Sequence[Sequence[str]]:
        tries.append(1)
        return found if len(tries) == 1 else [HOLDS]

    lock = SleepInhibitor(commands=look, now_s=clock)
    settled(lock, "missing")
    lock.update(working=True)
    assert (len(tries), children()) == (1, [])
    clock.now_s += RETRY_S
    lock.update(working=True)
    assert (lock.state, len(tries)) == ("held", 2)
    lock.release()


def test_a_lock_that_ended_is_taken_again(clock: Clock) -> None:
    lock = SleepInhibitor(commands=lambda: [HOLDS, HOLDS], now_s=clock)
    lock.update(working=True)
    (child,) = children()
    child.kill()
    eventually("another holds it", lambda: not lock.update(working=True) and children() not in ([], [child]))
    assert lock.state == "held"
    lock.release()


def test_a_machine_that_may_sleep_takes_no_lock(clock: Clock) -> None:
    lock = SleepInhibitor(allow_sleep=True, commands=lambda: [HOLDS], now_s=clock)
    lock.update(working=True)
    assert (lock.state, children()) == ("off", [])
    lock.release()


def test_nothing_is_left_of_a_process_that_is_killed() -> None:
    holder = """
import os, sys, time
from edgepp.host_system.sleep_inhibitor import SleepInhibitor
lock = SleepInhibitor(commands=lambda: [["cat"]])
lock.update(working=True)
print(lock.state, flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    eventually("the command ends with its input", lambda: not child.is_running())


def test_caffeinate_holds_the_lock_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sleep_inhibitor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert lock_commands() == [["/usr/bin/caffeinate", "-i", "-w", str(os.getpid())]]
    monkeypatch.setattr(sleep_inhibitor.shutil, "which", lambda name: None)
    assert lock_commands() == []


def test_logind_holds_the_lock_of_linux_where_systemd_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sleep_inhibitor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(systemd, "_BOOTED", tmp_path)
    strong, weak = lock_commands()
    assert strong[:2] == ["/usr/bin/systemd-inhibit", "--what=sleep:idle"]
    assert weak[:2] == ["/usr/bin/systemd-inhibit", "--what=idle"]
    monkeypatch.setattr(systemd, "_BOOTED", tmp_path / "none")
    assert lock_commands() == []
