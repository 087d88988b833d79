"""The other end of ``text_process``: starts it when there is something to do, and ends it when it takes too long."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from edgepp.child_process import python_command
from edgepp.errors import ModelError

_WALL_S = 120.0
"""For a process that is stopped, or a machine that is very busy: limits of a processor's time come long before."""
_LONGEST_BYTES = 1 << 28
_IDLE_S = 2.0


class TextClient:
    """One model's template and tokenizer, at work in a process of its own; safe to use from several threads.

    Every method but ``start`` and ``close`` raises a ModelError when the model's template or tokenizer fails, takes too
    long or too much memory. The process is then started anew for the next call.
    """

    def __init__(self, name: str, definition: str = "") -> None:
        """``definition`` is the text of a ``tokenizer.json``, unless ``open`` finds it."""
        self._name = name
        self._definition = definition
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded = self._kept = False
        self._idle: threading.Timer | None = None

    def start(self) -> None:
        """Have the process ready, without waiting, and keep it until ``close``; else it ends soon after a call."""
        self._kept = True
        threading.Thread(target=self._prepare, name="text", daemon=True).start()

    def open(self, folder: Path, size: int) -> dict[str, Any]:
        """Have the process read the tokenizer in a folder, ``size`` bytes; see ``definition.read_definition``."""
        with self._at_work():
            form = {"do": "open", "folder": str(folder.absolute()), "size": size}
            facts: dict[str, Any] = self._call(form, f"the tokenizer of {self._name} cannot be read")
            self._definition = facts["definition"]
        return facts

    def render(
        self, template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the ranges of it that came from the messages; see ``template.render``."""
        form = {"do": "render", "template": template, "messages": list(messages), "variables": dict(variables)}
        with self._at_work():
            text, content = self._call(form, f"the chat template of {self._name} refuses these messages")
        return str(text), content

    def encode(self, text: str, special: bool) -> list[int]:
        """See ``Encoder.encode``."""
        return self._encoded({"do": "encode", "text": text, "special": special})

    def encode_chat(self, text: str, content: Sequence[tuple[int, int]]) -> list[int]:
        """See ``Encoder.encode_chat``."""
        return self._encoded({"do": "chat", "text": text, "content": content})

    def close(self) -> None:
        """End the process. Another call starts it again."""
        with self._lock:
            self._kept = False
            self._end()

    def _prepare(self) -> None:
        with suppress(ModelError), self._at_work():  # the next call says so again
            self._load()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            try:
                yield
            finally:
                if not self._kept and self._process is not None:
                    self._idle = threading.Timer(_IDLE_S, self.close)
                    self._idle.daemon = True
                    self._idle.start()

    def _encoded(self, form: dict[str, Any]) -> list[int]:
        with self._at_work():
            self._load()
            ids: list[int] = self._call(form, f"the tokenizer of {self._name} cannot encode this text")
        return ids

    def _load(self) -> None:
        self._running()
        if self._loaded:
            return
        definition = self._definition.encode()
        form = {"do": "load", "bytes": len(definition)}
        self._call(form, f"the tokenizer of {self._name} cannot be read", definition)
        self._loaded = True

    def _call(self, form: Mapping[str, Any], trouble: str, after: bytes = b"") -> Any:
        process = self._running()
        stdin, stdout = _pipes(process)
        patience = threading.Timer(_WALL_S, process.kill)  # ends a write as well as a read
        patience.start()
        try:
            stdin.write(json.dumps(form).encode() + b"\n" + after)
            stdin.flush()
            line = stdout.readline(_LONGEST_BYTES)
        except BrokenPipeError:
            line = b""
        except BaseException:  # an interrupt: a reply may come that nobody waits for
            self._end()
            raise
        finally:
            patience.cancel()
            patience.join()
        if not line.endswith(b"\n"):
            raise ModelError(f"{trouble}: {_ending(self._end())}")
        reply = json.loads(line)
        if "failed" in reply:
            raise ModelError(f"{trouble}: {reply['failed']}")
        return reply["done"]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                python_command("edgepp.model.text.process"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._finalizer = weakref.finalize(self, _ended, self._process)
        return self._process

    def _end(self) -> int | None:
        """Its exit status, where it had ended by itself."""
        self._loaded = False
        process, self._process = self._process, None
        if process is None:
            return None
        self._finalizer.detach()
        return _ended(process)


def _ended(process: subprocess.Popen[bytes]) -> int:
    for pipe in _pipes(process):
        try:
            pipe.close()
        except OSError:  # what was still to be written
            continue
    process.kill()
    return process.wait()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("a process without pipes")
    return process.stdin, process.stdout


def _ending(status: int | None) -> str:
    if status == -signal.SIGXCPU:
        return "it takes too long"
    if status == -signal.SIGKILL:
        return f"it takes longer than {_WALL_S:g} s, or too much memory"
    return "it takes too much memory, or breaks the library that runs it"
