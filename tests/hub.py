"""A model hub on 127.0.0.1, with the manners of the real one and, on request, its faults.

It knows what edgepp asks: ``/api/models/<repository>[/revision/<revision>]`` and
``/<repository>/resolve/<revision>/<file>`` with ranges. It counts what it sends.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the server holds, how it behaves, and what it saw."""

    repositories: dict[str, Path]
    commit: str = COMMIT
    ranges: bool = True
    """Whether it answers a range request with the range; else with the whole file."""
    sizes: bool = True
    """Whether the listing gives bytes."""
    gated: set[str] = field(default_factory=set)
    extra_names: list[str] = field(default_factory=list)
    """Names that the listing shows beside the real ones."""
    busy: int = 0
    """So many requests for files are answered 503 first."""
    cut_after: int | None = None
    """Once this many bytes of safetensors files have been sent, connections break."""
    cuts: int = 1
    """So many connections break; then all is well again."""
    hold: threading.Event | None = None
    """Instead of breaking a connection, wait for this: a server that hangs."""
    redirect_to: str | None = None
    """Another origin that files are redirected to, as to a CDN."""

    hostile: Callable[[BaseHTTPRequestHandler, str], bool] | None = None
    """Answers a request for the file called so, or for the ``listing``, in its own way, or returns False."""

    url: str = ""
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of bodies sent, by file."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers of every request."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def weights_sent(self) -> int:
        """Bytes sent of safetensors files."""
        return sum(count for name, count in self.sent.items() if name.endswith(".safetensors"))

    def allowance(self, wanted: int) -> int:
        """How many of ``wanted`` bytes may go out before the connection breaks."""
        with self.lock:
            if self.cut_after is None or self.cuts == 0:
                return wanted
            left = self.cut_after - self.weights_sent()
            if wanted <= left:
                return wanted
            self.cuts -= 1
            return max(left, 0)


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Run the hub until the block ends; ``hub.url`` says where."""

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.0"  # one request a connection: no thread waits for a client that keeps it open

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.state.lock:
            self.state.requests.append((path, dict(self.headers)))
        if self.state.hostile is not None and self.state.hostile(
            self, path.rsplit("/", 1)[1] if "/resolve/" in path else "listing"
        ):
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._list(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._refuse(404, "")

    do_HEAD = do_GET  # noqa: N815

    def _list(self, repository: str, revision: str | None) -> None:
        if repository not in self.state.repositories:
            self._refuse(401, "RepoNotFound")
        elif revision not in (None, "main", self.state.commit):
            self._refuse(404, "RevisionNotFound")
        else:
            files = sorted(self.state.repositories[repository].iterdir())
            sizes = [path.stat().st_size if self.state.sizes else None for path in files]
            names = [(path.name, size) for path, size in zip(files, sizes, strict=True)]
            names += [(name, 1) for name in self.state.extra_names]
            siblings = [{"rfilename": name, **({"size": size} if size is not None else {})} for name, size in names]
            body = {"id": repository, "sha": self.state.commit, "siblings": siblings}
            self._send(200, json.dumps(body).encode(), "listing", {"Content-Type": "application/json"})

    def _file(self, repository: str, revision: str, name: str) -> None:
        state = self.state
        if repository in state.gated:
            return self._refuse(403, "GatedRepo")
        path = state.repositories.get(repository, Path("/nonexistent")) / name
        if revision != state.commit or not path.is_file():
            return self._refuse(404, "EntryNotFound")
        if state.redirect_to is not None:
            self.send_response(302)
            self.send_header("Location", state.redirect_to + self.path)
            return self.end_headers()
        with state.lock:
            refuses, state.busy = state.busy > 0, max(0, state.busy - 1)
        if refuses:
            return self._refuse(503, "")
        data = path.read_bytes()
        headers = {"X-Repo-Commit": state.commit, "ETag": '"x"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not state.ranges:
            return self._send(200, data, name, headers)
        start, stop = int(asked[1]), int(asked[2]) + 1 if asked[2] else len(data)
        stop = min(stop, len(data))
        if start >= stop:
            return self._refuse(416, "")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._send(206, data[start:stop], name, headers)

    def _send(self, status: int, body: bytes, name: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        step = 1 << 16
        for start in range(0, len(body), step):
            block = body[start : start + step]
            allowed = self.state.allowance(len(block)) if name.endswith(".safetensors") else len(block)
            if allowed < len(block) and self.state.hold is not None:
                self.state.hold.wait(60)
            with self.state.lock:  # before it goes: whoever has it may ask at once how much was sent
                self.state.sent[name] += allowed
            try:
                self.wfile.write(block[:allowed])
            except ConnectionError:
                return
            if allowed < len(block):
                return

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Keep tests quiet."""
