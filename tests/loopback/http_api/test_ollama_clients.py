"""The clients that people have for Ollama's API, each as it is, against the routes over a scripted model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import httpx
import ollama
import pytest

from edgepp.http_api.generation import Started, TextDelta, Usage
from edgepp.http_api.ollama_api.routes import routes
from edgepp.http_api.openai_api.routes import routes as openai_routes
from edgepp.http_api.routing import Routing
from tests.builders import ollama_clients as clients
from tests.builders.loopback_server import serving_app
from tests.builders.ollama_lines import check_listed
from tests.builders.scripted_service import SERVED, ScriptedService, Step, answer, calling
from tests.waiting import eventually

pytestmark = pytest.mark.filterwarnings("ignore")  # the clients' own: sockets left open, pydantic's advice
MODEL = SERVED.name
HELLO = answer("Hel", "lo")
USAGE = Usage(prompt_tokens=7, completion_tokens=3)
Serve: TypeAlias = Callable[..., tuple[str, ScriptedService]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that answers the request number i with script i; its URL and its model."""
    with ExitStack() as stack:

        def start(*scripts: Sequence[Step]) -> tuple[str, ScriptedService]:
            service = ScriptedService(scripts)
            return stack.enter_context(serving_app(Routing([*openai_routes(service), *routes(service)]))), service

        yield start


def test_the_sdk_without_asyncio(serve: Serve) -> None:
    url, _ = serve(HELLO)
    assert clients.sdk_whole(url, MODEL, "Hi") == clients.sdk_streamed(url, MODEL, "Hi") == "Hello"
    client = ollama.Client(url)
    assert client.pull(MODEL)["status"] == "success"
    with pytest.raises(ollama.ResponseError) as caught:
        client.pull("qwen3:4b")
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as caught:
        client.embed(MODEL, "text")
    assert caught.value.status_code == 501


@pytest.mark.parametrize("chosen", ["smollm2-135m:latest", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_home_assistant(serve: Serve, chosen: str) -> None:
    url, service = serve(calling("HassTurnOn", {"name": "lamp", "area": ""}), HELLO)
    assert clients.home_assistant(url, chosen) == ([("HassTurnOn", {"name": "lamp", "area": ""})], "Hello")
    *_, asked, result = service.request.prompt.messages  # type: ignore[union-attr]
    assert result["tool_call_id"] == asked["tool_calls"][0]["id"]
    assert result["name"] == "HassTurnOn"


def test_home_assistant_is_told_of_a_model_that_is_not_there(serve: Serve) -> None:
    url, _ = serve(HELLO)
    with pytest.raises(ollama.ResponseError, match="no model 'qwen3' is served here"):
        clients.home_assistant(url, "qwen3:latest")


def test_open_webui(serve: Serve) -> None:
    url, service = serve(HELLO, answer('{"title": "Greeting"}'), answer('{"tags": ["General"]}'))
    found = clients.open_webui(url)
    check_listed(found.model)
    assert found.loaded[0]["name"] == found.model["name"]
    assert found.version == "0.14.3"
    assert found.chat == "Hello"
    assert (found.title, found.tags) == ('{"title": "Greeting"}', '{"tags": ["General"]}')
    assert [played.request.options.max_tokens for played in service.played] == [24, 1000, 24]


def test_open_webui_by_its_connection_to_openai(serve: Serve) -> None:
    url, service = serve(HELLO, answer('{"title": "Greeting"}'), answer('{"tags": ["General"]}'))
    found = clients.open_webui_by_openai(url)
    assert found.chat == "Hello"
    assert (found.title, found.tags) == ('{"title": "Greeting"}', '{"tags": ["General"]}')
    assert [played.request.options.max_tokens for played in service.played] == [2048, 1000, 2048]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider", ["ollama", "ollama_chat"])
def test_litellm(serve: Serve, provider: str, stream: bool) -> None:
    url, _ = serve(HELLO)
    assert clients.litellm_text(url, f"{provider}/{MODEL}", "Hi", stream=stream) == ("Hello", "stop")


def test_litellm_finds_that_tools_work_and_how_long_the_context_is(serve: Serve) -> None:
    url, _ = serve(HELLO)
    found = clients.litellm_information(url, f"ollama/{MODEL}")
    assert found["supports_function_calling"] is True
    assert found["max_input_tokens"] == SERVED.context


@pytest.mark.parametrize("stream", [False, True])
def test_litellm_with_a_tool(serve: Serve, stream: bool) -> None:
    url, service = serve(calling("weather", {"city": "Oslo"}), answer("Cold."))
    assert clients.litellm_tool(url, f"ollama_chat/{MODEL}", stream=stream) == ("weather", {"city": "Oslo"}, "Cold.")
    *_, asked, result = service.request.prompt.messages  # type: ignore[union-attr]
    assert result["tool_call_id"] == asked["tool_calls"][0]["id"]


def test_langchain(serve: Serve) -> None:
    url, _ = serve(HELLO)
    assert clients.langchain_texts(url, MODEL, "Hi") == ("Hello", "Hello")


def test_langchain_with_a_tool(serve: Serve) -> None:
    url, service = serve(calling("weather", {"city": "Oslo"}), answer("Cold."))
    assert clients.langchain_tool(url, MODEL) == ("weather", {"city": "Oslo"}, "Cold.")
    assert service.request.tool_use.tools[0].name == "weather"


def test_langchain_with_a_schema(serve: Serve) -> None:
    url, service = serve(answer('{"name": "Ann", "age": 3}'))
    assert clients.langchain_schema(url, MODEL) == {"name": "Ann", "age": 3}
    constraint = service.request.options.constraint
    assert constraint is not None
    assert "age" in json.loads(constraint.text)["properties"]


def test_the_package_from_npm(serve: Serve) -> None:
    url, _ = serve(calling("weather", {"city": "Oslo"}), answer("Cold."))
    found = clients.npm_turn(url, MODEL)
    assert found == {
        "models": [f"{MODEL}:latest"],
        "calls": [{"name": "weather", "arguments": {"city": "Oslo"}}],
        "text": "Cold.",
    }


def test_the_program_llm_over_openais_api(serve: Serve, tmp_path: Path) -> None:
    url, service = serve(HELLO, calling("llm_version", {}), answer("It is new."))
    assert clients.llm(url, tmp_path / "home", "-m", "edgepp", "Hi") == "Hello"
    assert clients.llm(url, tmp_path / "home", "-m", "edgepp", "-T", "llm_version", "Which version?") == "It is new."
    assert service.request.tool_use.tools[0].name == "llm_version"


def test_the_program_llm_by_its_plugin_for_ollama(serve: Serve, tmp_path: Path) -> None:
    pytest.importorskip("llm_ollama")
    url, service = serve(HELLO, calling("llm_version", {}), answer("It is new."))
    model = f"ollama/{MODEL}:latest"
    assert model in clients.llm(url, tmp_path / "home", "models")
    assert clients.llm(url, tmp_path / "home", "-m", model, "Hi") == "Hello"
    assert clients.llm(url, tmp_path / "home", "-m", model, "-T", "llm_version", "Which version?") == "It is new."
    assert service.request.tool_use.tools[0].name == "llm_version"


def test_curl_as_in_the_documents_of_ollama(serve: Serve) -> None:
    url, _ = serve(HELLO)
    assert [line["response"] for line in clients.curl_generate(url, MODEL)] == ["Hel", "lo", ""]


def test_zed(serve: Serve) -> None:
    url, _ = serve(calling("terminal", {"command": "ls"}))
    assert clients.zed(url) == (MODEL, 2048, [("terminal", {"command": "ls"})])


def test_copilot(serve: Serve) -> None:
    url, service = serve(HELLO)
    assert clients.copilot(url, "Hi") == "Hello"
    assert len(service.played) == 1


def test_a_client_that_goes_away_cancels_its_answer(serve: Serve) -> None:
    url, service = serve([Started(7), TextDelta(0, "a"), asyncio.Event()])
    with httpx.stream("POST", f"{url}/api/chat", json={"messages": [{"role": "user", "content": "Hi"}]}) as response:
        next(response.iter_bytes())
    eventually("the answer is cancelled", lambda: service.played[0].cancelled)
