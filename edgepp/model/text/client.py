"""Client of the text process (``process``): starts it for a request, and ends it when idle or too slow."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from edgepp.child_process import python_command
from edgepp.errors import ModelError, PromptRefused
from edgepp.fair_turns import FairTurns
from edgepp.model.text.conversation import Conversation

_REQUEST_TIMEOUT_S = 120.0
"""Limit of a request in wall-clock time, for a very busy machine; CPU limits are much shorter."""
_LOOK_S = 1.0
"""How often a process that says nothing is looked at, since one that is stopped (SIGSTOP) would hold up all chats."""
_CHUNK_BYTES = 1 << 20
_MAX_REPLY_BYTES = 1 << 28
_IDLE_S = 2.0
"""Time from the last call to the end of the process, unless the process is to be kept."""
_MAX_WAITING = 256
"""Limit of the calls of one owner that wait for the process."""
_CALL_COST = 1000
"""Cost of a call in addition to 1 per character; owners get their turns by the cost of their calls."""


class TextClient:
    """The chat template and tokenizer of a model, run in a text process; safe to use from several threads.

    A call fails if template or tokenizer fail, take too long or take too much memory; the next call then starts another
    process. Owners of calls get their turns one after the other.
    """

    def __init__(self, name: str, definition: str = "") -> None:
        """``definition`` is the text of a ``tokenizer.json``; empty if ``open`` is to find it."""
        self._name = name
        self._definition = definition
        self._lock = threading.Lock()
        self._turns = FairTurns(1, 1, _MAX_WAITING)
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded = self._keep = False
        self._idle: threading.Timer | None = None

    def start(self) -> None:
        """Start the process in the background and keep it until ``close``; otherwise it ends soon after a call."""
        self._keep = True
        threading.Thread(target=self._prepare, name="text", daemon=True).start()

    def open(self, folder: Path, size_bytes: int) -> dict[str, Any]:
        """Read the tokenizer in ``folder``, files of ``size_bytes`` bytes; returns the dict of ``read_definition``.

        Raises:
            ModelError: the tokenizer is damaged, or exceeds its limits of time or memory.
            Overloaded: too many calls without an owner wait.
        """
        with self._exclusive("", size_bytes):
            request = {"do": "open", "folder": str(folder.absolute()), "size": size_bytes}
            facts: dict[str, Any] = self._call(request, f"the tokenizer of {self._name} cannot be read")
            self._definition = facts["definition"]
        return facts

    def render(
        self, template: str, conversation: Conversation, variables: Mapping[str, Any], owner: str = "", cost: int = 0
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and its ranges that come from messages; see ``chat_template.render``.

        ``cost`` is the number of characters of the conversation.

        Raises:
            PromptRefused: the template does not take these messages.
            ModelError: the template fails, or exceeds its limits of time or memory.
            Overloaded: too many calls of the owner wait.
        """
        fields = conversation.to_json()
        request = {"do": "render", "template": template, "conversation": fields, "variables": dict(variables)}
        with self._exclusive(owner, cost):
            text, content = self._call(request, f"the chat template of {self._name} refuses these messages")
        return str(text), content

    def encode(self, text: str, special: bool, owner: str = "") -> list[int]:
        """Ids of ``text``, in which names of control tokens become these tokens; ``special`` adds BOS and the like.

        Raises:
            ModelError: the tokenizer fails, or exceeds its limits of time or memory.
            Overloaded: too many calls of the owner wait.
        """
        return self._encoded({"do": "encode", "text": text, "special": special}, owner)

    def encode_chat(self, text: str, content: Sequence[tuple[int, int]], owner: str = "") -> list[int]:
        """Ids of a rendered conversation, whose ranges ``content`` in characters never become control tokens.

        Raises:
            ModelError: the tokenizer fails, or exceeds its limits of time or memory.
            Overloaded: too many calls of the owner wait.
        """
        return self._encoded({"do": "chat", "text": text, "content": content}, owner)

    def decode(self, ids: Sequence[int], owner: str = "") -> str:
        """The text of token ids, as the tokenizers library decodes it.

        Raises:
            ModelError: the tokenizer fails, or exceeds its limits of time or memory.
            Overloaded: too many calls of the owner wait.
        """
        with self._exclusive(owner, len(ids)):
            self._load()
            request = {"do": "decode", "ids": list(ids)}
            return str(self._call(request, f"the tokenizer of {self._name} cannot decode these tokens"))

    def close(self) -> None:
        """End the process; another call starts it again."""
        with self._lock:
            self._keep = False
            self._end()

    def _prepare(self) -> None:
        with suppress(ModelError), self._exclusive("", 0):  # the next call raises the error
            self._load()

    @contextmanager
    def _exclusive(self, owner: str, cost: int) -> Iterator[None]:
        with self._turns.turn(owner, cost + _CALL_COST), self._lock:
            if self._idle is not None:
                self._idle.cancel()
            try:
                yield
            finally:
                if not self._keep and self._process is not None:
                    self._idle = threading.Timer(_IDLE_S, self.close)
                    self._idle.daemon = True
                    self._idle.start()

    def _encoded(self, request: dict[str, Any], owner: str) -> list[int]:
        with self._exclusive(owner, len(request["text"])):
            self._load()
            ids: list[int] = self._call(request, f"the tokenizer of {self._name} cannot encode this text")
        return ids

    def _load(self) -> None:
        self._started()
        if self._loaded:
            return
        definition = self._definition.encode()
        request = {"do": "load", "bytes": len(definition)}
        self._call(request, f"the tokenizer of {self._name} cannot be read", definition)
        self._loaded = True

    def _call(self, request: Mapping[str, Any], failure: str, payload: bytes = b"") -> Any:
        process = self._started()
        try:
            line = _exchange(process, json.dumps(request).encode() + b"\n" + payload)
        except BaseException:  # such as an interrupt: a reply that arrives later must not be read by the next call
            self._end()
            raise
        if not line.endswith(b"\n"):
            raise ModelError(f"{failure}: {_reason_of_end(self._end())}")
        reply = json.loads(line)
        if "refused" in reply:
            raise PromptRefused(f"{failure}: {reply['refused']}")
        if "failed" in reply:
            raise ModelError(f"{failure}: {reply['failed']}")
        return reply["done"]

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - a constant command
                python_command("edgepp.model.text.process"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
            os.set_blocking(_pipes(self._process)[0].fileno(), False)
            self._finalizer = weakref.finalize(self, _kill, self._process)
        return self._process

    def _end(self) -> int | None:
        """End the process; returns its exit status, None if it was not running."""
        self._loaded = False
        process, self._process = self._process, None
        if process is None:
            return None
        self._finalizer.detach()
        return _kill(process)


def _exchange(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    """Send a request; the reply, which lacks its line feed where the process ended, was stopped or took too long."""
    stdin, stdout = (pipe.fileno() for pipe in _pipes(process))
    unsent, reply = memoryview(request), bytearray()
    poll = select.poll()
    poll.register(stdin, select.POLLOUT)
    poll.register(stdout, select.POLLIN)
    until_s = time.monotonic() + _REQUEST_TIMEOUT_S
    was_stopped = False
    while not reply.endswith(b"\n") and len(reply) <= _MAX_REPLY_BYTES and time.monotonic() < until_s:
        came = poll.poll(_LOOK_S * 1000)
        if not came:
            is_stopped = _is_stopped(process)
            if is_stopped and was_stopped:  # twice: after Ctrl-Z and `fg`, this process may be the first to go on
                break
            was_stopped = is_stopped
        for descriptor, _ in came:
            if descriptor == stdin:
                try:
                    unsent = unsent[os.write(stdin, unsent[:_CHUNK_BYTES]) :]
                except BrokenPipeError:
                    return b""
                if not unsent:
                    poll.unregister(stdin)
            elif chunk := os.read(stdout, _CHUNK_BYTES):
                reply += chunk
            else:
                return b""
    return bytes(reply)


def _is_stopped(process: subprocess.Popen[bytes]) -> bool:
    try:
        return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def _kill(process: subprocess.Popen[bytes]) -> int:
    for pipe in _pipes(process):
        try:
            pipe.close()
        except OSError:  # unwritten bytes
            continue
    process.kill()
    return process.wait()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("the text process has no pipes")
    return process.stdin, process.stdout


def _reason_of_end(status: int | None) -> str:
    if status == -signal.SIGXCPU:
        return "it takes too long"
    if status == -signal.SIGKILL:
        return f"it was stopped, takes longer than {_REQUEST_TIMEOUT_S:g} s, or takes too much memory"
    return "it takes too much memory, or breaks the library that runs it"
