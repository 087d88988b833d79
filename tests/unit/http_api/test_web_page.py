"""The files of the web page: who gets them, with which headers; and what is vendored is what npm has."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from pathlib import Path

import pytest
from starlette.types import ASGIApp

from edgepp.http_api.app import make_app
from edgepp.http_api.http_options import HttpOptions, Limits
from edgepp.http_api.page_files import FOLDER, page_files
from edgepp.http_api.web_page import POLICY
from tests.builders.asgi import Answered, Headers, call, scope
from tests.builders.scripted_service import ScriptedService, answer

BROWSER = [("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")]
VENDOR = FOLDER / "vendor"


@functools.cache
def open_app() -> ASGIApp:
    return make_app(ScriptedService([answer("x")]), HttpOptions(), Limits(), key_required=False)


def ask(path: str, headers: Headers = (), method: str = "GET", *, key_required: bool = False) -> Answered:
    locked = key_required and make_app(ScriptedService([answer("x")]), HttpOptions(), Limits(), key_required=True)
    app = locked or open_app()
    found = asyncio.run(call(app, {**scope(method, path, headers, "192.168.1.9"), "query_string": b""}))
    assert found is not None
    return found


def test_a_browser_gets_the_page() -> None:
    found = ask("/", BROWSER)
    assert (found.status, found.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert found.body.startswith(b"<!doctype html>")
    assert found.headers["vary"] == "Accept, Origin"


@pytest.mark.parametrize("headers", [(), [("accept", "*/*")], [("accept", "application/json, text/plain")]])
def test_others_get_the_line_that_clients_of_ollama_look_for(headers: Headers) -> None:
    assert ask("/", headers).body == b"Ollama is running"


def test_every_file_is_sent_under_the_strict_policy() -> None:
    assert len(page_files()) > 20
    for path, file in page_files().items():
        found = ask(path, BROWSER)
        assert (found.status, found.body) == (200, file.body)
        assert found.headers["content-security-policy"] == POLICY
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "no-referrer"
        assert found.headers["etag"] == file.etag
    assert "unsafe" not in POLICY
    assert POLICY.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")


def test_a_file_that_the_browser_has_is_not_sent_again() -> None:
    etag = page_files()["/web/js/main.js"].etag
    assert not etag.startswith("W/")
    for known in (etag, f'"other", W/{etag}', "*"):
        found = ask("/web/js/main.js", [("if-none-match", known)])
        assert (found.status, found.body, found.headers["etag"]) == (304, b"", etag)
    assert ask("/web/js/main.js", [("if-none-match", '"other"')]).status == 200


@pytest.mark.parametrize(
    "path",
    ["/web", "/web/index.html", "/web/../errors.py", "/web/%2e%2e/errors.py", "/web/vendor/manifest.json", "/web/js/"],
)
def test_nothing_else_of_the_folder_is_served(path: str) -> None:
    assert ask(path, BROWSER).status == 404


def test_the_page_needs_no_key_and_takes_get_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    assert ask("/", BROWSER, key_required=True).status == 200
    assert ask("/web/js/main.js", key_required=True).status == 200
    assert ask("/web/js/main.js", method="HEAD", key_required=True).status == 200
    assert ask("/web/js/main.js", method="POST", key_required=True).status == 401
    assert ask("/web/js/none.js", key_required=True).status == 401


def test_a_page_of_another_site_loads_no_file() -> None:
    for path in page_files():
        assert ask(path, [*BROWSER, ("sec-fetch-site", "cross-site")]).status == 403


def test_files_that_the_page_names_exist() -> None:
    text = page_files()["/"].body.decode()
    named = {part.partition('"')[0] for part in text.split('"web/')[1:]}
    assert len(named) > 5
    assert {f"/web/{name}" for name in named} <= set(page_files())
    assert "http://" not in text
    assert "https://" not in text


def test_vendored_files_are_those_of_npm() -> None:
    described = json.loads((VENDOR / "manifest.json").read_text())
    listed = {"manifest.json"}
    for package in described:
        assert package["licence"] in ("MIT", "Apache-2.0")
        for entry in package["files"]:
            content = (VENDOR / entry["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == entry["sha256"], entry["file"]
            listed.add(entry["file"])
        assert package["licence_file"] in listed
        version = f"v{package['version']}", f"DOMPurify {package['version']}"
        assert any(one in (VENDOR / package["files"][0]["file"]).read_text()[:300] for one in version)
    assert listed == {file.name for file in VENDOR.iterdir()}
