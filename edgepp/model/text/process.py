"""What a model brings to make text and ids of each other, run in a process of its own.

``python -m edgepp.model.text.process`` reads a tokenizer's files, runs the tokenizer and renders chat templates. All
are the model's: a template can loop for ever, a tokenizer's expressions can take minutes for a line, and its files can
ask for any memory. So each call has limits of a processor's time and of memory, and may end this process. Requests and
replies are JSON, a line each; it ends when its input does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from edgepp.child_process import limit_cpu, limit_memory
from edgepp.model.text.chat_template import render
from edgepp.model.text.encoder import Encoder
from edgepp.model.text.tokenizer_definition import import_reader, read_definition
from edgepp.printable import one_line

MEMORY_BYTES = 2 << 30
RENDER_S = 1


def encode_s(characters: int) -> int:
    """Seconds of a processor that encoding so much text may take."""
    return 2 + characters // 250_000


def open_s(folder_bytes: int) -> int:
    """Seconds of a processor that reading so much of tokenizer files may take, also where they must be converted."""
    return min(20 + folder_bytes // 250_000, 100)


def load_s(definition_bytes: int) -> int:
    """Seconds of a processor that reading a tokenizer of this size may take."""
    return 5 + definition_bytes // 1_000_000


class _Desk:
    """The one who answers requests."""

    def __init__(self) -> None:
        self._encoder: Encoder | None = None

    def answer(self, form: dict[str, Any], definition: bytes) -> Any:
        if form["do"] == "render":
            limit_cpu(RENDER_S)
            return render(form["template"], form["messages"], form["variables"])
        if form["do"] == "open":
            import_reader()
            limit_cpu(open_s(form["size"]))
            return read_definition(Path(form["folder"]))
        if form["do"] == "load":
            limit_cpu(load_s(len(definition)))
            self._encoder = Encoder(definition.decode())
            return None
        if self._encoder is None:
            raise ValueError("no tokenizer was loaded")
        text: str = form["text"]
        limit_cpu(encode_s(len(text)))
        if form["do"] == "chat":
            return self._encoder.encode_chat(text, form["content"])
        return self._encoder.encode(text, form["special"])


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MEMORY_BYTES >> 30} GB of memory"
    if isinstance(error, RecursionError):
        return "it calls itself without an end, or is nested too deeply"
    text = one_line(str(error), 300)
    ours = type(error).__module__.startswith("jinja2") or type(error) in (ValueError, Exception)
    return text if ours and text else f"{type(error).__name__}: {text}"


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops an answer, not this
    limit_memory(MEMORY_BYTES)
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    desk = _Desk()
    while line := requests.readline():
        form = json.loads(line)
        definition = requests.read(form.get("bytes", 0))
        try:
            reply = json.dumps({"done": desk.answer(form, definition)})
        except BaseException as error:  # noqa: BLE001 - a panic of the tokenizers library is no Exception
            reply = json.dumps({"failed": _reason(error)})
        replies.write(reply.encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    _main()
