"""How a person types into a chat: pasted text in one piece, a key for a new line, a history over sessions."""

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
"""Characters that come at once and are taken for pasted text, not typed keys."""
_MOST_KEYS = 1 << 20
"""Keys that are read before they are acted upon."""
_PIECES_S = 0.1
"""Between two pieces of one paste."""
_MOST_LINES = 1000
_MOST_BYTES = 1 << 20
_LONGEST = 1 << 14
"""The longest line, in bytes of the file, that is remembered."""
_ENTER = (Keys.ControlM, Keys.ControlJ)


def prompt_session() -> PromptSession[str]:
    """A prompt with the history of earlier chats; Enter sends, Alt-Enter and Ctrl-J begin a new line."""
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
        history=kept_history(), input=typed, multiline=True, key_bindings=bindings, prompt_continuation="  "
    )


class PastingInput(Vt100Input):
    """A terminal's keys, with pasted text in one piece also where the terminal does not mark it as pasted.

    Each key costs prompt_toolkit about half a millisecond and some kilobytes, so 60 kB key by key took 20 s.
    """

    def __init__(self, stdin: TextIO) -> None:
        super().__init__(stdin)
        self._aside: deque[tuple[float, str]] = deque()
        """What was typed between prompts, in the pieces in which it came, each with its time."""
        self._ready: Callable[[], None] = lambda: None

    def attach(self, input_ready_callback: Callable[[], None]) -> AbstractContextManager[None]:
        """See ``Vt100Input``; what was set aside is read first."""
        self._ready = input_ready_callback
        self._set_aside()
        self._announce()
        return super().attach(input_ready_callback)

    @contextlib.contextmanager
    def setting_aside(self) -> Iterator[None]:
        """Between two prompts: read what is typed as it comes, since only then a paste differs from typed lines."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.fileno(), self._set_aside)
        try:
            yield
        finally:
            loop.remove_reader(self.fileno())

    def drop_aside(self) -> None:
        """Forget what was set aside."""
        self._aside.clear()

    def read_keys(self) -> list[KeyPress]:
        """All keys that wait, or one piece of what was set aside."""
        if self._aside:
            self.vt100_parser.feed(self._aside.popleft()[1])
            self._announce()
            return together(self.flush_keys(), is_aside=True)
        keys = super().read_keys()
        while len(keys) < _MOST_KEYS and not self.closed and self._waiting(_pause_s(keys)):
            keys += super().read_keys()
        return together(keys)

    def _announce(self) -> None:
        if self._aside:
            asyncio.get_running_loop().call_soon(self._ready)

    def _set_aside(self) -> None:
        text = ""
        while self._waiting() and not self.closed and len(text) < _MOST_KEYS:
            text += self.stdin_reader.read()
        if self.closed:
            asyncio.get_running_loop().remove_reader(self.fileno())
        now = time.monotonic()
        if self._aside and len(self._aside[-1][1]) >= _PASTED and now - self._aside[-1][0] < _PIECES_S:
            text = self._aside.pop()[1] + text
        if text and sum(len(piece) for _, piece in self._aside) + len(text) <= _MOST_KEYS:
            self._aside.append((now, text))

    def _waiting(self, patience_s: float = 0.0) -> bool:
        try:
            return bool(select.select([self.fileno()], [], [], patience_s)[0])
        except (OSError, ValueError):  # closed
            return False


def _pause_s(keys: Sequence[KeyPress]) -> float:
    """How long to wait for more: a terminal hands over a long paste in pieces, which may end with a line."""
    return _PIECES_S if len(keys) >= _PASTED and keys[-1].key in _ENTER else 0.0


def together(keys: Sequence[KeyPress], *, is_aside: bool = False) -> list[KeyPress]:
    """``keys`` that came at once, with long text and text of several lines as one paste each.

    An Enter in mid-text is a new line of the pasted text, and one at the end sends it. Several lines that were set
    aside (``is_aside``) wait in the prompt instead: who pasted them saw no prompt.
    """
    found: list[KeyPress] = []
    run: list[KeyPress] = []
    for index, press in enumerate(keys):
        is_enter = press.key in _ENTER
        if is_enter and index == len(keys) - 1 > 0:
            is_kept = is_aside and any(before.key in _ENTER for before in run)
            found += [*_pasted(run), *([] if is_kept else [KeyPress(Keys.ControlM, "\r")])]
            run = []
        elif is_enter or press.key == Keys.ControlI or not isinstance(press.key, Keys):
            run.append(press)
        else:
            found += [*_pasted(run), press]
            run = []
    return found + _pasted(run)


def _pasted(run: list[KeyPress]) -> list[KeyPress]:
    """A run of text as one paste, or as it is where it may have been typed."""
    broken = len(run) > 1 and any(press.key in _ENTER for press in run)
    if len(run) < _PASTED and not broken:
        return run
    text = "".join("\n" if press.key in _ENTER else press.data for press in run)
    return [KeyPress(Keys.BracketedPaste, text)]


def kept_history() -> History:
    """The lines of earlier chats, kept beside this machine's identity; only of this one where that cannot be."""
    try:
        return KeptHistory(config_dir() / "history.jsonl")
    except EdgeppError:
        return InMemoryHistory()


class KeptHistory(History):
    """Lines in a file that only its owner can read, a JSON text each; the newest are kept.

    A file that cannot be read or written, or is no file, is as if it were not there: no chat fails for it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """What was typed, newest first."""
        return reversed(self._read())

    def store_string(self, string: str) -> None:
        """Remember a line, unless it is very long."""
        line = json.dumps(string)
        if len(line) > _LONGEST:
            return
        with contextlib.suppress(OSError), self._open(os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            os.write(file, f"{line}\n".encode())
            if os.fstat(file).st_size > 2 * _MOST_BYTES:
                self._shorten()

    def _shorten(self) -> None:
        lines = self._read()
        with self._open(os.O_WRONLY | os.O_TRUNC) as file:
            os.write(file, "".join(f"{json.dumps(line)}\n" for line in lines).encode())

    def _read(self) -> list[str]:
        """The newest lines, oldest first, as many as are kept."""
        try:
            with self._open(os.O_RDONLY) as file:
                size = os.fstat(file).st_size
                raw = os.pread(file, _MOST_BYTES, max(0, size - _MOST_BYTES))
        except OSError:
            return []
        lines = raw.split(b"\n")[size > _MOST_BYTES :]
        return [line for text in lines if (line := _text(text)) is not None][-_MOST_LINES:]

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


def set_aside(session: PromptSession[str]) -> AbstractContextManager[None]:
    """What is typed meanwhile waits for the next prompt of ``session``."""
    typed = session.input
    return typed.setting_aside() if isinstance(typed, PastingInput) else contextlib.nullcontext()


def drop_aside(session: PromptSession[str]) -> None:
    """Forget what was typed since the last prompt, as a shell does after Ctrl-C."""
    if isinstance(session.input, PastingInput):
        session.input.drop_aside()


@contextlib.contextmanager
def unechoed() -> Iterator[None]:
    """What is typed between prompts does not show among what is printed: it waits for the next prompt.

    Ctrl-C still interrupts, and drops what was typed, as in a shell.
    """
    try:
        before = termios.tcgetattr(sys.stdin)
    except (termios.error, ValueError, AttributeError, OSError):  # no terminal
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
