"""Ollama's API of a cluster that has no stage yet, and that demands a key."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import ollama
import pytest

from tests.builders.ollama_lines import check_listed
from tests.cluster import Machine
from tests.multiprocess.http_cluster import MODEL
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.filterwarnings("ignore:unclosed")  # the SDK leaves its connections open


@pytest.fixture(scope="module")
def loading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a coordinator without a stage, and a key that it admits."""
    machine = Machine(tmp_path_factory.mktemp("loading"), "one")
    key = machine.json("keys", "add", "test", "--json")["key"]
    given = ("-m", MODEL, "--no-stage", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--require-key")
    with machine.running("serve", *given, EDGEPP_TEST_RUN="shared") as served:
        yield served.until("listening")["http"], key


def test_the_list_is_there_while_the_model_loads(loading: tuple[str, str]) -> None:
    url, key = loading
    client = ollama.Client(url, headers={"Authorization": f"Bearer {key}"})
    assert [model.model for model in client.list().models] == [f"{MODEL}:latest"]
    assert client.ps().models == []
    assert "completion" in (client.show(MODEL).capabilities or [])
    listed = httpx.get(f"{url}/api/tags", headers={"Authorization": f"Bearer {key}"}).json()["models"]
    check_listed(listed[0])


def test_a_chat_is_told_that_the_model_loads(loading: tuple[str, str]) -> None:
    url, key = loading
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    response = httpx.post(f"{url}/api/chat", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_S)
    assert response.status_code == 503
    assert isinstance(response.json()["error"], str)
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer edgepp-wrong"}])
@pytest.mark.parametrize("path", ["/api/tags", "/ollama/api/tags"])
def test_a_wrong_key_is_told_in_the_form_of_ollama(
    loading: tuple[str, str], path: str, headers: dict[str, str]
) -> None:
    response = httpx.get(loading[0] + path, headers=headers)
    assert response.status_code == 401
    assert isinstance(response.json()["error"], str)
