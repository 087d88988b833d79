"""A terminal that takes nothing, as after Ctrl-S or while the client of an SSH session sleeps, under `edgepp serve`."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.cluster import EDGEPP, Machine
from tests.waiting import PATIENCE_S

ALONE = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--threads", "1")


class Terminal:
    """A terminal that a command prints on."""

    def __init__(self) -> None:
        self._control, self.device = pty.openpty()
        self._shown = ""

    def until(self, pattern: str) -> re.Match[str]:
        """Read until ``pattern`` is shown."""
        while (found := re.search(pattern, self._shown)) is None:
            self._shown += os.read(self._control, 4096).decode(errors="replace")
        return found

    def hold(self, *, held: bool) -> None:
        termios.tcflow(self.device, termios.TCOOFF if held else termios.TCOON)

    def close(self) -> None:
        os.close(self._control)
        os.close(self.device)


@contextmanager
def serving(machine: Machine, model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Terminal, str]]:
    """`edgepp serve` on a terminal, ready to answer, and its URL."""
    terminal = Terminal()
    process = subprocess.Popen(
        [*EDGEPP, "serve", "-m", str(model), *ALONE, *options],
        stdin=subprocess.DEVNULL,
        stdout=terminal.device,
        stderr=terminal.device,
        env=machine.env(),
    )
    try:
        url = terminal.until(r"browser: (http://\S+)/\s")[1]
        terminal.until("ready to answer")
        yield process, terminal, url
    finally:
        terminal.hold(held=False)
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)
        terminal.close()


@pytest.fixture
def one(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "one")


def test_a_terminal_that_is_held_stops_no_answer_and_shows_all_later(one: Machine, tiny: Path) -> None:
    with serving(one, tiny) as (_, terminal, url):
        terminal.hold(held=True)
        token = one.json("token", "--json")["name"]
        one.json("revoke", token, "--json")  # makes an event, which is printed
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S).status_code == 200
        terminal.hold(held=False)
        terminal.until(f"revoked {token}")


def test_a_command_ends_although_its_terminal_is_held(one: Machine, tiny: Path) -> None:
    with serving(one, tiny) as (process, terminal, _):
        terminal.hold(held=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_log_lines_on_a_terminal_that_is_held_stop_no_answer_and_come_later(one: Machine, tiny: Path) -> None:
    with serving(one, tiny, "--log-level", "debug") as (process, terminal, url):
        terminal.hold(held=True)
        for n in range(40):
            body = {"messages": [{"role": "user", "content": f"hi {n}"}], "max_tokens": 2}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S)
            assert answer.status_code == 200
        terminal.hold(held=False)
        terminal.until(r"edgepp\.engine INFO request 40: ended")
        terminal.until(r"edgepp\.stage INFO sequence opened: 40\b")
        terminal.hold(held=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
