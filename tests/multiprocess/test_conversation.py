"""The interactive chat, in a pseudo-terminal as a person would use it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from edgepp.cluster.state_files import config_dir
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.cluster import EDGEPP
from tests.waiting import PATIENCE_S, eventually


class Terminal:
    """A command with a pseudo-terminal; ``expect`` reads until a text shows up."""

    def __init__(self, *command: str) -> None:
        self._master, slave = pty.openpty()
        environment = os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "dumb", "COLUMNS": "120"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        self._slave = slave
        self._seen = ""

    def type(self, text: str) -> None:
        for start in range(0, len(text), 512):  # what is shown must be read meanwhile, or both sides would wait
            os.write(self._master, text[start : start + 512].encode())
            while select.select([self._master], [], [], 0)[0]:
                self._read()

    def _read(self) -> None:
        self._seen += os.read(self._master, 65536).decode(errors="replace")

    def listens(self) -> None:
        """Wait until the prompt has taken the keyboard; until then Ctrl-C is the terminal's."""
        eventually("the prompt listens", lambda: not termios.tcgetattr(self._master)[3] & termios.ISIG)

    def is_between_prompts(self) -> bool:
        """Whether keys are neither echoed nor taken by the prompt."""
        flags = termios.tcgetattr(self._slave)[3]
        return bool(flags & termios.ISIG) and not flags & termios.ECHO

    def waits_unread(self) -> int:
        """Characters that were typed and not read yet."""
        return int(struct.unpack("i", fcntl.ioctl(self._slave, termios.FIONREAD, b"\0" * 4))[0])

    def expect(self, text: str) -> str:
        """What was shown up to and with ``text``."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self._seen:
            assert time.monotonic() < deadline, f"{text!r} never came; the screen shows: {self._seen[-800:]}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._read()
        shown, self._seen = self._seen.split(text, 1)
        return shown + text

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    path = make_checkpoint(tmp_path / "tiny", replace(TINY, context=4096))
    opened = Terminal(
        *EDGEPP, "chat", "-m", str(path), "--stages", "2", "--ignore-eos", "-n", "12", "--system", "Be nice."
    )
    opened.expect("/help lists commands")
    yield opened
    opened.close()


def test_a_conversation_with_commands(terminal: Terminal) -> None:
    terminal.type("/stats\r")
    terminal.expect("no answer yet")
    terminal.type("hello\r")
    terminal.expect("12 tokens · first after")
    terminal.type("and again\r")
    terminal.expect("12 tokens · first after")
    terminal.type("/stats\r")
    shown = terminal.expect("stage 1 (layers 2-3)")
    assert "stage 0 (layers 0-1) on node" in shown
    terminal.type("/reset\r")
    terminal.expect("forgotten")
    terminal.type("/nonsense\r")
    terminal.expect("there is no command /nonsense")
    terminal.type("/quit\r")
    assert terminal.process.wait(PATIENCE_S) == 0


def test_lines_typed_during_an_answer_are_asked_in_turn_and_pasted_ones_wait_as_one(terminal: Terminal) -> None:
    history = config_dir() / "history.jsonl"
    stage = psutil.Process(terminal.process.pid).children()[-1]
    terminal.listens()
    stage.suspend()  # holds the answer
    terminal.type("hello\r")
    eventually("the answer is on its way", terminal.is_between_prompts)
    for typed in ("/usr/bin is what?\r", "/stat\r", "alpha\r  beta\rgamma\r"):
        terminal.type(typed)
        eventually("it was read", lambda: not terminal.waits_unread())
        time.sleep(0.4)  # a paste in pieces has no such pause
    with suppress(psutil.NoSuchProcess):  # after 5 s it counted as hung
        stage.resume()
    terminal.expect("12 tokens · first after")
    terminal.expect("12 tokens · first after")
    shown = terminal.expect("did you mean /stats?") + terminal.expect("> a")  # a dumb terminal shows the last letter
    assert "12 tokens" not in shown
    assert "alpha" not in history.read_text()
    terminal.type("!\r")
    terminal.expect("12 tokens · first after")
    terminal.type("exit\r")
    assert terminal.process.wait(PATIENCE_S) == 0
    asked = [json.loads(line) for line in history.read_text().splitlines()]
    assert asked[-5:] == ["hello", "/usr/bin is what?", "/stat", "alpha\n  beta\ngamma!", "exit"]


def test_a_long_text_that_comes_at_once_is_soon_asked(terminal: Terminal) -> None:
    terminal.type("twelve bytes " * 5000 + "\r")
    terminal.expect("do not fit into the context")
    terminal.type("/bye\r")
    assert terminal.process.wait(PATIENCE_S) == 0


def test_what_is_typed_during_an_answer_does_not_show_in_it(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "tiny", replace(TINY, context=1 << 17))
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    opened = Terminal("env", f"EDGEPP_HOME={home}", *EDGEPP, "chat", "-m", str(path), "--ignore-eos", "-n", "100000")
    try:
        opened.expect("/help lists commands")
        opened.type("hello\r")
        opened.expect("filler")  # a word of its vocabulary
        opened.type("MEANWHILE")
        time.sleep(0.2)  # the terminal would show it at once
        opened.process.send_signal(signal.SIGINT)
        assert "MEANWHILE" not in opened.expect("tokens · first after")
        opened.expect("> ")
        opened.type("\x15exit\r")  # Ctrl-U clears what waited
        assert opened.process.wait(PATIENCE_S) == 0
    finally:
        opened.close()
    assert (home / "history.jsonl").read_text() == '"hello"\n"exit"\n'
    assert (home / "history.jsonl").stat().st_mode & 0o777 == 0o600


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "tiny", replace(TINY, context=1 << 17))
    opened = Terminal(*EDGEPP, "chat", "-m", str(path), "--stages", "2", "--ignore-eos", "-n", "100000")
    try:
        opened.expect("/help lists commands")
        opened.type("hello\r")
        opened.expect("filler")  # a word of its vocabulary
        stage = psutil.Process(opened.process.pid).children()[-1]
        stage.suspend()  # so that the answer cannot end by itself
        opened.process.send_signal(signal.SIGINT)
        stopped = opened.expect("tokens · first after")
        with suppress(psutil.NoSuchProcess):  # after 5 s it counted as hung
            stage.resume()
        assert "100000 tokens" not in stopped
        opened.type("/quit\r")
        assert opened.process.wait(PATIENCE_S) == 0
    finally:
        opened.close()


def test_ctrl_c_clears_the_line_and_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.listens()
    terminal.type("/stats\x03")
    terminal.expect("> ")
    terminal.listens()
    terminal.type("/reset\r")
    terminal.expect("forgotten")
    terminal.expect("> ")
    terminal.listens()
    terminal.type("\x04")
    assert terminal.process.wait(PATIENCE_S) == 0


def test_ctrl_c_while_the_model_loads_leaves_at_once(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "tiny", TINY)
    opened = Terminal(*EDGEPP, "chat", "-m", str(path), "--stages", "3")
    try:
        eventually("a stage process starts", lambda: psutil.Process(opened.process.pid).children())
        opened.process.send_signal(signal.SIGINT)
        assert opened.process.wait(PATIENCE_S) == 130
    finally:
        opened.close()


def test_stages_that_died_between_questions_cost_none_of_them(terminal: Terminal) -> None:
    terminal.type("hello\r")
    terminal.expect("12 tokens · first after")
    for child in psutil.Process(terminal.process.pid).children():
        child.kill()
    terminal.type("are you there\r")
    terminal.expect("12 tokens · first after")
    terminal.type("/quit\r")
    assert terminal.process.wait(PATIENCE_S) == 0
