"""Facts about the model in Ollama's API, and what its clients may not do."""

from __future__ import annotations

import json

import ollama
import pytest

from tests.builders.ollama_clients import newer_or_same
from tests.builders.ollama_lines import check_listed
from tests.unit.http_api.ollama_api.asking import sent, served, with_sdk


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
def test_head(path: str) -> None:
    response = sent(served(), "HEAD", path)
    assert response.status_code == 200
    assert response.content == b""


def test_the_root_says_what_clients_look_for() -> None:
    assert sent(served(), "GET", "/").text == "Ollama is running"


def test_the_version_passes_the_comparison_of_copilot() -> None:
    version = sent(served(), "GET", "/api/version").json()["version"]
    assert newer_or_same([int(part) for part in version.split(".")], [0, 6, 4])


@pytest.mark.parametrize("state", ["loaded", "loading"])
def test_the_list_holds_the_model_with_a_tag_also_while_it_loads(state: str) -> None:
    (model,) = sent(served(state=state), "GET", "/api/tags").json()["models"]
    check_listed(model)
    assert model["name"] == model["model"] == "smollm2-135m:latest"
    assert model["capabilities"] == ["completion", "tools"]
    assert model["details"]["parameter_size"] == "135M"


def test_what_is_loaded() -> None:
    (model,) = sent(served(), "GET", "/api/ps").json()["models"]
    assert ollama.ProcessResponse.Model.model_validate(model).expires_at.year > 2200
    assert model["context_length"] == 2048
    assert sent(served(state="loading"), "GET", "/api/ps").json() == {"models": []}


@pytest.mark.parametrize("field", ["model", "name"])
@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m:latest", "HuggingFaceTB/SmolLM2-135M-Instruct:latest"])
def test_show(field: str, name: str) -> None:
    found = sent(served(), "POST", "/api/show", {field: name}).json()
    assert found["capabilities"] == ["completion", "tools"]
    assert found["model_info"]["general.architecture"] == "llama"
    assert found["model_info"]["general.basename"] == "smollm2-135m"
    assert found["model_info"]["general.parameter_count"] == 134_515_008
    assert found["model_info"]["llama.context_length"] == 2048
    assert found["model_info"]["llama.embedding_length"] == 576
    assert "num_ctx                        2048" in found["parameters"]
    assert all(isinstance(found[name], str) for name in ("modelfile", "parameters", "template", "modified_at"))


@pytest.mark.parametrize(
    ("template", "supports", "word"),
    [("{{ messages }}", True, True), ("{{ messages }}{{ tools }}", True, True), ("{{ messages }}", False, False)],
)
def test_the_template_has_the_word_tools_where_tools_work(template: str, supports: bool, word: bool) -> None:
    found = sent(served(template=template, supports_tools=supports), "POST", "/api/show", {"model": ""}).json()
    assert ("tools" in found["template"]) is word
    assert ("tools" in found["capabilities"]) is word


def test_a_model_that_thinks_says_so() -> None:
    found = sent(served(thinks=True), "POST", "/api/show", {}).json()
    assert found["capabilities"] == ["completion", "tools", "thinking"]


def test_the_sdk_reads_all_there_is_to_know() -> None:
    async def work(client: ollama.AsyncClient) -> None:
        (listed,) = (await client.list()).models
        (loaded,) = (await client.ps()).models
        assert listed.model == loaded.model == "smollm2-135m:latest"
        shown = await client.show(listed.model or "")
        assert shown.capabilities == ["completion", "tools"]
        assert shown.modelinfo is not None

    with_sdk(served(), work)


def test_the_model_that_is_there_can_be_pulled() -> None:
    streamed = sent(served(), "POST", "/api/pull", {"model": "smollm2-135m:latest"})
    assert [json.loads(line)["status"] for line in streamed.content.splitlines()] == ["pulling manifest", "success"]
    assert sent(served(), "POST", "/api/pull", {"name": "smollm2-135m", "stream": False}).json() == {
        "status": "success"
    }


@pytest.mark.parametrize("path", ["/api/pull", "/api/show", "/api/chat", "/api/generate"])
def test_another_model_is_not_found(path: str) -> None:
    response = sent(served(), "POST", path, {"model": "llama3.2:latest"})
    assert response.status_code == 404
    assert response.json() == {"error": "no model 'llama3.2' is served here; there is smollm2-135m"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "/api/delete", 403),
        ("POST", "/api/create", 403),
        ("POST", "/api/copy", 403),
        ("POST", "/api/push", 403),
        ("POST", "/api/blobs/sha256:00", 403),
        ("POST", "/api/embed", 501),
        ("POST", "/api/embeddings", 501),
    ],
)
def test_what_edgepp_does_not_do_is_refused_in_json(method: str, path: str, status: int) -> None:
    response = sent(served(), method, path, {"model": "smollm2-135m"})
    assert response.status_code == status
    assert list(response.json()) == ["error"]
