"""`edgepp launch` with the clients themselves, and what it prints, writes and refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.http_api import running_server
from edgepp.http_api.app import ROUTE_LISTS
from edgepp.http_api.routing import Routing
from tests.builders.loopback_server import serving_app
from tests.builders.npm_clients import client_environment, npm_client
from tests.builders.scripted_service import ScriptedService, answer

KEY = "sk-launched"
COMMANDS = {
    "claude": ("-p", "hi"),
    "codex": ("exec", "--skip-git-repo-check", "hi"),
    "opencode": ("run", "--pure", "hi"),
    "llm": ("hi",),
}
"""One question to each client, whose answer it prints."""
PACKAGES = {"claude": "@anthropic-ai/claude-code", "codex": "@openai/codex", "opencode": "opencode-ai"}


class Keyed:
    """Refuses requests without the key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = dict(scope["headers"])
        given = (headers.get(b"authorization"), headers.get(b"x-api-key"))
        if f"Bearer {KEY}".encode() not in given and KEY.encode() not in given:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            return await send({"type": "http.response.body", "body": b"{}"})
        return await self._app(scope, receive, send)


@pytest.fixture
def url() -> Iterator[str]:
    service = ScriptedService([answer("The answer", " is here.")])
    app = Routing([route for routes in ROUTE_LISTS for route in routes(service)])
    with serving_app(Keyed(app)) as found:
        yield found


def launch(home: Path, *arguments: str, key: str = KEY, path: str = "") -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    environment = client_environment(home, {"EDGEPP_HOME": str(home / "edgepp"), "EDGEPP_API_KEY": key})
    environment |= {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"}
    environment["PATH"] = f"{path}:{Path(sys.executable).parent}:{environment['PATH']}"
    work = home / "work"
    work.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "edgepp", "launch", *arguments],
        cwd=work,
        env=environment | {"PYTHONPATH": os.fspath(Path(__file__).parents[3])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("client", COMMANDS)
def test_a_client_is_started_and_answers(client: str, url: str, tmp_path: Path) -> None:
    package = PACKAGES.get(client)
    path = str(npm_client(package, client).parent) if package else ""
    if not package and shutil.which(client, path=Path(sys.executable).parent) is None:
        pytest.skip(f"{client} is not installed")
    done = launch(tmp_path / "home", client, "--url", url, *COMMANDS[client], path=path)
    assert "The answer is here." in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("client", [*COMMANDS, "open-webui", "zed"])
def test_print_changes_no_file_of_the_client_and_tells_no_key(client: str, url: str, tmp_path: Path) -> None:
    done = launch(tmp_path / "home", client, "--url", url, "--print")
    assert done.returncode == 0, done.stderr
    assert url in done.stdout
    assert KEY not in done.stdout
    assert '"$EDGEPP_API_KEY"' in done.stdout
    assert {one.name for one in (tmp_path / "home").iterdir()} <= {"work", "edgepp"}


def test_what_is_written_is_undone(url: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = launch(home, "claude", "--url", url, "--write")
    written = home / ".claude" / "settings.json"
    assert done.returncode == 0, done.stderr
    assert url in written.read_text()
    assert KEY not in written.read_text()
    assert launch(home, "claude", "--undo").returncode == 0
    assert not written.exists()


def test_the_server_of_this_machine_is_found(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "edgepp").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("EDGEPP_HOME", str(home / "edgepp"))
    running_server.announce(url)
    assert url in launch(home, "codex", "--print").stdout
    running_server.withdraw()
    done = launch(home, "codex", "--print")
    assert done.returncode != 0
    assert "edgepp serve" in done.stderr


def test_a_wrong_key_is_told_as_such(url: str, tmp_path: Path) -> None:
    for key, words in (("", "wants a key"), ("sk-no", "does not accept the key"), ("a\nb", "Invalid header")):
        done = launch(tmp_path / "home", "codex", "--url", url, "--print", key=key)
        assert done.returncode != 0
        assert words in done.stderr


@pytest.mark.parametrize("wrong", ["ftp://x", "http://", "http://[", "http://x:99999"])
def test_a_url_that_is_none_is_refused(wrong: str, tmp_path: Path) -> None:
    done = launch(tmp_path / "home", "codex", "--url", wrong, "--print")
    assert done.returncode == 2
    assert "is no URL" in done.stderr


def test_a_client_that_is_not_there_is_named_with_its_installation(url: str, tmp_path: Path) -> None:
    done = launch(tmp_path / "home", "open-webui", "--url", url)
    assert done.returncode == 2
    assert "pip install open-webui" in done.stderr
