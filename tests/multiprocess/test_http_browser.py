"""Pages in a real browser: of another site they reach nothing, of this machine they work; rebinding is refused."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from edgepp.http_api.http_options import HttpOptions
from edgepp.http_api.routing import Routing
from edgepp.http_api.server import HttpServer
from tests.builders.chromium import BROWSER, chromium
from tests.builders.scripted_service import ScriptedService, answer
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

PAGE = """<!doctype html><title>page</title><script>
const server = SERVER, routes = ROUTES, body = JSON.stringify(BODY);
const json = {"content-type": "application/json"}, form = {"content-type": "application/x-www-form-urlencoded"};
const readable = [], texts = {};
async function attempt(name, act) {
  try {
    const response = await act();
    if (response.type === "opaque") return;
    readable.push(name + " " + response.status);
    texts[name] = await response.text();
  } catch (refused) {}
}
const inserted = (tag, url) => new Promise(done => {
  const element = document.createElement(tag);
  element.onload = element.onerror = () => done({type: "opaque"});
  element.src = url;
  document.head.append(element);
});
(async () => {
  for (const [method, path] of routes) {
    const url = server + path, to = (what, options) => attempt(
      [what, method, path].join(" "), () => fetch(url, {method, ...options}));
    if (method === "get" || method === "head") {
      await to("plain");
      await to("no-cors", {mode: "no-cors"});
      await attempt("img " + path, () => inserted("img", url));
      await attempt("script " + path, () => inserted("script", url));
    } else {
      await to("json", {headers: json, body});
      await to("text", {body});
      await to("blob", {body: new Blob([body])});
      await to("empty", {});
      if (method === "post") {
        await to("no-cors text", {body, mode: "no-cors"});
        await to("no-cors blob", {body: new Blob([body]), mode: "no-cors"});
        await to("no-cors form", {body, headers: form, mode: "no-cors"});
        navigator.sendBeacon(url, body);
        navigator.sendBeacon(url, new Blob([body], {type: "application/json"}));
      }
    }
  }
  await fetch("/done", {method: "POST", body: JSON.stringify({readable, texts})});
})();
</script>"""
BODY = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "max_tokens": 3}


class Reached:
    """The routing of a server, which notes what reaches it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        passed_on = Routing.__call__

        async def noted(routing: Routing, scope: Scope, receive: Receive, send: Send) -> None:
            self.paths.append(scope["path"])
            await passed_on(routing, scope, receive, send)

        monkeypatch.setattr(Routing, "__call__", noted)


@contextmanager
def site(page: str) -> Iterator[tuple[int, queue.Queue[dict[str, Any]]]]:
    """A web site with one page, and what the page tells in the end."""
    told: queue.Queue[dict[str, Any]] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(page.encode())

        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._answer(b"")

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def routes_of(server: HttpServer) -> list[tuple[str, str]]:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    found = [(method, path.replace("{", "").replace("}", "")) for path, methods in paths.items() for method in methods]
    found += [("get", path) for path in ("/web/js/main.js", "/web/js/api_key.js", "/web/icon.svg")]
    return [*found, ("get", "/openapi.json"), ("post", "/v1/models/load"), ("get", "/metrics"), ("get", "/nowhere")]


def visit(folder: Path, host: str, routes: Sequence[tuple[str, str]], server: HttpServer) -> dict[str, Any]:
    """What a page of ``host`` says of its requests to ``server``."""
    page = PAGE.replace("SERVER", json.dumps(server.url)).replace("ROUTES", json.dumps(routes))
    with (
        site(page.replace("BODY", json.dumps(BODY), 1)) as (port, told),
        chromium(folder) as browser,
        browser.page(f"http://{host}:{port}/"),
    ):
        return told.get(timeout=PATIENCE_S)


def test_a_page_of_another_site_reaches_no_route_and_one_of_this_machine_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> None:
        service, reached = ScriptedService([answer("Hello")]), Reached(monkeypatch)
        async with HttpServer(service, HttpOptions("127.0.0.1:0")) as server:
            routes = await asyncio.to_thread(routes_of, server)
            assert len(routes) > 20
            reached.paths.clear()
            told = await asyncio.to_thread(visit, tmp_path / "evil", "evil.example", routes, server)
            assert told == {"readable": [], "texts": {}}
            assert reached.paths == []
            assert service.played == []
            friendly = [route for route in routes if route[1] in ("/v1/chat/completions", "/v1/models")]
            told = await asyncio.to_thread(visit, tmp_path / "friendly", "localhost", friendly, server)
            assert "json post /v1/chat/completions 200" in told["readable"]
            assert "Hello" in told["texts"]["json post /v1/chat/completions"]
            assert "smollm2-135m" in told["texts"]["plain get /v1/models"]
            assert "text post /v1/chat/completions 415" in told["readable"]

    asyncio.run(act())


def test_a_name_that_was_bound_to_this_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(folder: Path, url: str) -> str:
        with chromium(folder) as browser, browser.page(url) as page:
            return str(page.js("document.body.innerText"))

    async def act() -> None:
        reached = Reached(monkeypatch)
        async with HttpServer(ScriptedService([answer("Hello")]), HttpOptions("127.0.0.1:0")) as server:
            port = server.url.rpartition(":")[2]
            text = await asyncio.to_thread(shown, tmp_path / "rebound", f"http://rebound.example:{port}/api/tags")
            assert "Host header" in text
            assert "smollm2" not in text
            assert reached.paths == []
            text = await asyncio.to_thread(shown, tmp_path / "own", f"http://localhost:{port}/api/tags")
            assert "smollm2" in text

    asyncio.run(act())
