"""Client of OpenAI's API in a process of its own. ``http_load`` starts the program.

The program reads JSON lines on standard input: first the base URL and the model, then one load per line, a list of
prompts and the tokens of each answer. It asks all prompts at the same time, each over a connection that stays open, and
writes the time of each piece of text. The program does nothing else with an answer, so that the server is measured.
Standard library only.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Client:
    """Open connections to one server."""

    url: str
    model: str
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def load(self, prompts: Sequence[str], tokens: int) -> list[Mapping[str, Any]]:
        """Ask all prompts at the same time."""
        return await asyncio.gather(*(self.ask(prompt, tokens) for prompt in prompts))

    async def ask(self, prompt: str, tokens: int) -> Mapping[str, Any]:
        """Seconds from the question to each piece of text, and the counts that the server tells."""
        place = urlsplit(self.url)
        connection = self.idle.pop() if self.idle else await asyncio.open_connection(place.hostname, place.port)
        reader, writer = connection
        sent_s = time.perf_counter()
        writer.write(self._request(prompt, tokens, place.netloc))
        if b" 200 " not in await reader.readline():
            raise RuntimeError((await reader.read(2000)).decode(errors="replace"))
        arrivals: list[float] = []
        usage: Mapping[str, Any] = {}
        while (line := await reader.readline()) != b"data: [DONE]\n":
            if not line:
                raise RuntimeError("the server closed the connection")
            if line.startswith(b"data: "):
                now_s = time.perf_counter()
                chunk = json.loads(line[6:])
                if any(choice["delta"].get("content") for choice in chunk["choices"]):
                    arrivals.append(now_s - sent_s)
                usage = chunk.get("usage") or usage
        while await reader.readline() != b"0\r\n":
            pass  # the chunk that ends the body
        await reader.readline()
        self.idle.append(connection)
        reused = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "prompt_tokens": usage["prompt_tokens"],
            "reused": reused,
            "tokens": usage["completion_tokens"],
            "arrivals_s": arrivals,
        }

    def _request(self, prompt: str, tokens: int, host: str) -> bytes:
        body = json.dumps({
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_completion_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "repetition_penalty": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
        }).encode()  # fmt: skip
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def main() -> None:
    """Answer loads until the input ends."""
    settings = json.loads(sys.stdin.readline())
    client = Client(settings["url"], settings["model"])
    while line := await asyncio.to_thread(sys.stdin.readline):
        load = json.loads(line)
        try:
            answer: Mapping[str, Any] = {"answers": await client.load(load["prompts"], load["tokens"])}
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    for _, writer in client.idle:
        writer.close()


if __name__ == "__main__":
    asyncio.run(main())
