"""Signals whose handler runs where Python cannot raise an exception: the command ends all the same."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.waiting import PATIENCE_S

PROGRAM = """
import os, sys, threading
from edgepp.cli import run_to_end
from edgepp.cli.signals import stop_on_terminate

class Finalised:
    def __del__(self):
        {act}
        for _ in range(1000):
            pass

def program():
    {before}
    Finalised()
    sys.stderr.write("went on\\n")
    threading.Event().wait({wait_s})
    return 0

run_to_end(lambda: program, print)
"""


def ended(act: str, before: str = "pass", wait_s: float = PATIENCE_S) -> tuple[int, str]:
    """Exit status and standard error of a command in which a finaliser carries out ``act``."""
    program = PROGRAM.format(act=act, before=before, wait_s=wait_s)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S / 2)
    return done.returncode, done.stderr


@pytest.mark.parametrize("before", ["pass", "stop_on_terminate()"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_finaliser_ends_the_command(number: int, before: str) -> None:
    status, said = ended(f"os.kill(os.getpid(), {int(number)})", before)
    assert status == 128 + number
    assert said == "went on\n" + ("interrupted\n" if number == signal.SIGINT else "")


def test_another_error_of_a_finaliser_is_shown() -> None:
    status, said = ended("raise ValueError('shown')", wait_s=0)
    assert status == 0
    assert "ValueError: shown" in said
