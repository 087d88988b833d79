"""The lines that README.md and docs/clients.md tell people to type, typed at a two-stage cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multiprocess.http_cluster import HttpCluster, serving_http
from tests.waiting import PATIENCE_S

_ROOT = Path(__file__).parents[2]
_ADDRESS = "http://127.0.0.1:11434"
_PAGES = {name: (_ROOT / name).read_text() for name in ("README.md", "docs/clients.md")}


def blocks(language: str) -> list[str]:
    """The blocks of a language, in all pages, that name the address of the server."""
    pattern = rf"^```{language}\n(.*?)^```$"
    found = [block for page in _PAGES.values() for block in re.findall(pattern, page, re.DOTALL | re.MULTILINE)]
    return [block for block in found if _ADDRESS in block]


CURLS = [
    line for block in blocks("(?:sh)?") for line in block.replace("\\\n", " ").splitlines() if line.startswith("curl ")
]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpCluster]:
    """A cluster whose answers end soon, since the documents ask without a limit."""
    with serving_http(tmp_path_factory.mktemp("short"), "--stages", "2", "--context", "256") as cluster:
        yield cluster


@pytest.mark.parametrize("program", blocks("python"), ids=lambda program: program.split()[1])
def test_a_program_of_the_documents_runs(short: HttpCluster, program: str) -> None:
    program = program.replace(_ADDRESS, short.url)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # else it asks the internet first
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", CURLS, ids=lambda line: line.split()[1].removeprefix(_ADDRESS))
def test_a_curl_line_of_the_documents_is_answered(short: HttpCluster, line: str) -> None:
    command = line.replace(_ADDRESS, short.url) + " --silent --show-error --fail-with-body"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(json.loads(told).get("error") is None for told in done.stdout.splitlines())


def test_the_documents_have_lines_for_each_api() -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat"):
        assert any(f"{_ADDRESS}{path} " in line for line in CURLS), path
    assert len(blocks("python")) >= 5
