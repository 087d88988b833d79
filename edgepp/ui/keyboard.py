"""Keyboard input of the interactive chat: pasted text in one piece, a key for a new line, a history across sessions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys

from edgepp.cluster.state_files import config_dir
from edgepp.errors import EdgeppError
from edgepp.safe_files import open_descriptor

_PASTED = 32
"""Number of characters arriving at once from which on a text counts as pasted, not typed."""
_MAX_KEYS = 1 << 20
"""Upper limit of the keys of one read, and of the characters kept between prompts."""
_PASTE_GAP_S = 0.1
"""Longest pause between two pieces of one paste."""
_MAX_HISTORY_LINES = 1000
_MAX_HISTORY_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 14
"""The longest line, as JSON, that the history keeps."""
_ENTER = (Keys.ControlM, Keys.ControlJ)


def prompt_session() -> PromptSession[str]:
    """A prompt with the history of earlier chats; Enter sends, Alt-Enter and Ctrl-J insert a newline."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    @bindings.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    typed = PastingInput(sys.stdin) if sys.stdin.isatty() else None
    return PromptSession(
        history=saved_history(), input=typed, multiline=True, key_bindings=bindings, prompt_continuation="  "
    )


class PastingInput(Vt100Input):
    """Terminal input that delivers pasted text in one piece, even if the terminal does not mark it as pasted.

    Each key costs prompt_toolkit about half a millisecond and some kilobytes: 60 kB, key by key, took 20 s.
    """

    def __init__(self, stdin: TextIO) -> None:
        super().__init__(stdin)
        self._kept: deque[tuple[float, str]] = deque()
        """Text typed between prompts, in the pieces in which it arrived, each with its time."""
        self._ready: Callable[[], None] = lambda: None

    def attach(self, input_ready_callback: Callable[[], None]) -> AbstractContextManager[None]:
        """Start to deliver keys to prompt_toolkit; text kept between prompts comes first."""
        self._ready = input_ready_callback
        self._keep_typed()
        self._announce()
        return super().attach(input_ready_callback)

    @contextlib.contextmanager
    def keeping_typed(self) -> Iterator[None]:
        """Read text as it arrives between two prompts: only the time of arrival tells a paste from typed lines."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.fileno(), self._keep_typed)
        try:
            yield
        finally:
            loop.remove_reader(self.fileno())

    def discard_typed(self) -> None:
        """Discard the kept text."""
        self._kept.clear()

    def read_keys(self) -> list[KeyPress]:
        """All waiting keys, or one piece of kept text."""
        if self._kept:
            self.vt100_parser.feed(self._kept.popleft()[1])
            self._announce()
            return group_pastes(self.flush_keys(), is_kept_text=True)
        keys = super().read_keys()
        while len(keys) < _MAX_KEYS and not self.closed and self._waiting(_pause_s(keys)):
            keys += super().read_keys()
        return group_pastes(keys)

    def _announce(self) -> None:
        if self._kept:
            asyncio.get_running_loop().call_soon(self._ready)

    def _keep_typed(self) -> None:
        text = ""
        while self._waiting() and not self.closed and len(text) < _MAX_KEYS:
            text += self.stdin_reader.read()
        if self.closed:
            asyncio.get_running_loop().remove_reader(self.fileno())
        now = time.monotonic()
        if self._kept and len(self._kept[-1][1]) >= _PASTED and now - self._kept[-1][0] < _PASTE_GAP_S:
            text = self._kept.pop()[1] + text
        if text and sum(len(piece) for _, piece in self._kept) + len(text) <= _MAX_KEYS:
            self._kept.append((now, text))

    def _waiting(self, timeout_s: float = 0.0) -> bool:
        try:
            return bool(select.select([self.fileno()], [], [], timeout_s)[0])
        except (OSError, ValueError):  # closed
            return False


def _pause_s(keys: Sequence[KeyPress]) -> float:
    """Seconds to wait for further keys: a long paste arrives in pieces, and a piece may end with a newline."""
    return _PASTE_GAP_S if len(keys) >= _PASTED and keys[-1].key in _ENTER else 0.0


def group_pastes(keys: Sequence[KeyPress], *, is_kept_text: bool = False) -> list[KeyPress]:
    """``keys`` that arrived at once, with each long or multi-line text as one paste.

    Enter within such text is a newline of the paste; Enter at the end sends the paste. If the keys were typed between
    prompts (``is_kept_text``), several lines stay in the prompt unsent: the user saw no prompt when pasting.
    """
    found: list[KeyPress] = []
    run: list[KeyPress] = []
    for index, press in enumerate(keys):
        is_enter = press.key in _ENTER
        if is_enter and index == len(keys) - 1 > 0:
            stays = is_kept_text and any(before.key in _ENTER for before in run)
            found += [*_pasted(run), *([] if stays else [KeyPress(Keys.ControlM, "\r")])]
            run = []
        elif is_enter or press.key == Keys.ControlI or not isinstance(press.key, Keys):
            run.append(press)
        else:
            found += [*_pasted(run), press]
            run = []
    return found + _pasted(run)


def _pasted(run: list[KeyPress]) -> list[KeyPress]:
    """A run of text as one paste; unchanged if it is short and has one line, and so may have been typed."""
    has_newline = len(run) > 1 and any(press.key in _ENTER for press in run)
    if len(run) < _PASTED and not has_newline:
        return run
    text = "".join("\n" if press.key in _ENTER else press.data for press in run)
    return [KeyPress(Keys.BracketedPaste, text)]


def saved_history() -> History:
    """The history file in the configuration folder; a history of this chat only if the folder cannot be used."""
    try:
        return SavedHistory(config_dir() / "history.jsonl")
    except EdgeppError:
        return InMemoryHistory()


class SavedHistory(History):
    """Lines in a file of mode 0600, one JSON string per line; the newest lines are kept.

    A file that cannot be read or written, or is not regular, counts as empty: no chat fails because of it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """The saved lines, newest first."""
        return reversed(self._read())

    def store_string(self, string: str) -> None:
        """Save a line, unless the line takes more than 16 KiB as JSON."""
        line = json.dumps(string)
        if len(line) > _MAX_LINE_BYTES:
            return
        with contextlib.suppress(OSError), self._open(os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            os.write(file, f"{line}\n".encode())
            if os.fstat(file).st_size > 2 * _MAX_HISTORY_BYTES:
                self._shorten()

    def _shorten(self) -> None:
        lines = self._read()
        with self._open(os.O_WRONLY | os.O_TRUNC) as file:
            os.write(file, "".join(f"{json.dumps(line)}\n" for line in lines).encode())

    def _read(self) -> list[str]:
        """The newest lines, oldest first, at most ``_MAX_HISTORY_LINES``."""
        try:
            with self._open(os.O_RDONLY) as file:
                size = os.fstat(file).st_size
                raw = os.pread(file, _MAX_HISTORY_BYTES, max(0, size - _MAX_HISTORY_BYTES))
        except OSError:
            return []
        lines = raw.split(b"\n")[size > _MAX_HISTORY_BYTES :]
        return [line for text in lines if (line := _text(text)) is not None][-_MAX_HISTORY_LINES:]

    @contextlib.contextmanager
    def _open(self, flags: int) -> Iterator[int]:
        file = open_descriptor(self._path, flags | os.O_NOFOLLOW)
        try:
            about = os.fstat(file)
            if about.st_uid != os.getuid():
                raise OSError("not a file of this user")
            if about.st_mode & 0o077:
                os.fchmod(file, 0o600)
            yield file
        finally:
            os.close(file)


def _text(line: bytes) -> str | None:
    try:
        text = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return text if isinstance(text, str) else None


def keep_typed(session: PromptSession[str]) -> AbstractContextManager[None]:
    """Keep text that is typed within the block for the next prompt of ``session``."""
    typed = session.input
    return typed.keeping_typed() if isinstance(typed, PastingInput) else contextlib.nullcontext()


def discard_typed(session: PromptSession[str]) -> None:
    """Discard text typed since the last prompt, as a shell does after Ctrl-C."""
    if isinstance(session.input, PastingInput):
        session.input.discard_typed()


@contextlib.contextmanager
def echo_off() -> Iterator[None]:
    """Turn off the echo of the terminal, so that text typed between prompts does not mix with printed text.

    Ctrl-C still interrupts.
    """
    try:
        before = termios.tcgetattr(sys.stdin)
    except (termios.error, ValueError, AttributeError, OSError):  # not a terminal
        yield
        return
    quiet = before.copy()
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
