"""The text process: reads the tokenizer of a model, encodes text and renders chat templates, with limits.

``python -m edgepp.model.text.process`` is started by ``client``. Template and tokenizer come with the model: a template
can loop forever, a regular expression can take minutes for a line, and a file can ask for any amount of memory. So each
request has a limit of CPU seconds, the process has a limit of memory, and exceeding either ends the process. Requests
and replies are JSON, one per line. The process ends when its standard input closes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from edgepp.child_process import limit_cpu, limit_memory
from edgepp.model.text.chat_template import TemplateRefusal, render
from edgepp.model.text.conversation import Conversation
from edgepp.model.text.encoder import Encoder
from edgepp.model.text.tokenizer_definition import import_reader, read_definition
from edgepp.printable import one_line

MAX_MEMORY_BYTES = 2 << 30
"""Limit of the memory of the process."""
RENDER_S = 1
"""Limit in CPU seconds for rendering a conversation."""


def encode_s(characters: int) -> int:
    """Limit in CPU seconds for encoding a text of ``characters`` characters."""
    return 2 + characters // 250_000


def open_s(folder_bytes: int) -> int:
    """Limit in CPU seconds for reading tokenizer files of ``folder_bytes`` bytes, conversion included."""
    return min(20 + folder_bytes // 250_000, 100)


def load_s(definition_bytes: int) -> int:
    """Limit in CPU seconds for loading a tokenizer definition of ``definition_bytes`` bytes."""
    return 5 + definition_bytes // 1_000_000


class _RequestHandler:
    """Handler of requests, with the tokenizer that was loaded last."""

    def __init__(self) -> None:
        self._encoder: Encoder | None = None

    def handle(self, request: dict[str, Any], definition: bytes) -> Any:
        if request["do"] == "render":
            limit_cpu(RENDER_S)
            return render(request["template"], Conversation(**request["conversation"]), request["variables"])
        if request["do"] == "open":
            import_reader()
            limit_cpu(open_s(request["size"]))
            return read_definition(Path(request["folder"]))
        if request["do"] == "load":
            limit_cpu(load_s(len(definition)))
            self._encoder = Encoder(definition.decode(), lambda: limit_cpu(2 * load_s(len(definition))))
            return None
        if self._encoder is None:
            raise ValueError("no tokenizer was loaded")
        if request["do"] == "decode":
            limit_cpu(encode_s(len(request["ids"])))
            return self._encoder.decode(request["ids"])
        text: str = request["text"]
        limit_cpu(encode_s(len(text)))
        if request["do"] == "chat":
            return self._encoder.encode_chat(text, request["content"])
        return self._encoder.encode(text, request["special"])


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MAX_MEMORY_BYTES >> 30} GB of memory"
    if isinstance(error, RecursionError):
        return "it recurses without end, or is nested too deeply"
    text = one_line(str(error), 300)
    is_plain = type(error).__module__.startswith("jinja2") or type(error) in (ValueError, Exception)
    return text if is_plain and text else f"{type(error).__name__}: {text}"


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the parent process
    limit_memory(MAX_MEMORY_BYTES)
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    handler = _RequestHandler()
    while line := requests.readline():
        request = json.loads(line)
        definition = requests.read(request.get("bytes", 0))
        try:
            reply = json.dumps({"done": handler.handle(request, definition)})
        except TemplateRefusal as error:
            reply = json.dumps({"refused": one_line(str(error), 300)})
        except BaseException as error:  # noqa: BLE001 - a panic of the tokenizers library is not an Exception
            reply = json.dumps({"failed": _reason(error)})
        replies.write(reply.encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    _main()
