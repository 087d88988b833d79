"""Ollama's API of a two-stage cluster with real weights, and the clients that people have for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import ollama
import pytest

from tests.builders import ollama_clients as clients
from tests.builders.ollama_lines import check_listed, strict_lines
from tests.multiprocess.http_cluster import MODEL, HttpCluster
from tests.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.filterwarnings("ignore")  # the clients' own: sockets left open, pydantic's advice
T = TypeVar("T")
TAGGED = f"{MODEL}:latest"
QUESTION = [{"role": "user", "content": "Name three colours."}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def settled(answer: Callable[[], T]) -> T:
    """The second answer: it finds its prompt in the prefix cache as later ones do, and so is rounded as they are."""
    answer()
    return answer()


def chat(cluster: HttpCluster, **body: Any) -> dict[str, Any]:
    """A whole answer to ``QUESTION``, greedy unless ``body`` says otherwise."""
    response = cluster.post("/api/chat", **{"messages": QUESTION, "stream": False, "options": clients.GREEDY, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_the_list_the_details_and_what_is_loaded(http_cluster: HttpCluster) -> None:
    (listed,) = http_cluster.get("/api/tags").json()["models"]
    check_listed(listed)
    (loaded,) = http_cluster.get("/api/ps").json()["models"]
    assert listed["name"] == loaded["name"] == TAGGED
    shown = http_cluster.post("/api/show", model=TAGGED).json()
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["llama.context_length"] == loaded["context_length"]
    assert "tools" in shown["template"]


def test_the_context_is_where_refusal_begins(http_cluster: HttpCluster) -> None:
    shown = http_cluster.post("/api/show", model=MODEL).json()
    context = shown["model_info"]["llama.context_length"]
    body = {"raw": True, "stream": False, "options": {"num_predict": 1}}
    too_long = http_cluster.post("/api/generate", prompt=" a" * (context + 1), **body)
    assert too_long.status_code == 400
    assert str(context) in too_long.json()["error"]


def test_the_lines_of_a_stream_are_the_whole_answer(http_cluster: HttpCluster) -> None:
    whole = settled(lambda: chat(http_cluster))
    streamed = http_cluster.post("/api/chat", messages=QUESTION, options=clients.GREEDY)
    lines = strict_lines(streamed.content)
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"] != ""
    assert lines[-1]["eval_count"] == whole["eval_count"] <= 24
    assert lines[-1]["prompt_eval_count"] == whole["prompt_eval_count"]
    assert min(whole[name] for name in ("total_duration", "prompt_eval_duration", "eval_duration")) > 0


def test_a_completion_goes_on_from_its_context(http_cluster: HttpCluster) -> None:
    body = {"stream": False, "options": clients.GREEDY}
    first = http_cluster.post("/api/generate", prompt="My name is Ann.", **body).json()
    assert len(first["context"]) == first["prompt_eval_count"] + first["eval_count"]
    second = http_cluster.post("/api/generate", prompt="And mine?", context=first["context"], **body).json()
    assert second["context"][: len(first["context"])] == first["context"]
    assert second["prompt_eval_count"] > len(first["context"])


def test_an_answer_ends_at_its_limit_or_at_a_stop(http_cluster: HttpCluster) -> None:
    cut = chat(http_cluster, options={**clients.GREEDY, "num_predict": 3})
    assert (cut["done_reason"], cut["eval_count"]) == ("length", 3)
    text = settled(lambda: chat(http_cluster))["message"]["content"]
    word = text.split()[2]
    stopped = chat(http_cluster, options={**clients.GREEDY, "stop": [word]})
    assert stopped["message"]["content"] == text[: text.index(word)]
    assert stopped["done_reason"] == "stop"


def test_a_seed_makes_an_answer_that_can_be_had_again(http_cluster: HttpCluster) -> None:
    options = {"temperature": 1.5, "seed": 11, "num_predict": 12, "num_ctx": 1 << 20, "mirostat": 0}
    first = settled(lambda: chat(http_cluster, options=options)["message"])
    again = chat(http_cluster, options=options)["message"]
    other = chat(http_cluster, options={**options, "seed": 12})["message"]
    assert first == again != other


def test_a_schema_holds_the_answer(http_cluster: HttpCluster) -> None:
    found = json.loads(chat(http_cluster, format=PERSON, options={"temperature": 1.5, "seed": 3})["message"]["content"])
    assert set(found) == {"name", "age"}


def test_any_json_is_an_object(http_cluster: HttpCluster) -> None:
    response = chat(http_cluster, format="json", options={"temperature": 0, "num_predict": 400})
    if response["done_reason"] == "stop":
        assert isinstance(json.loads(response["message"]["content"]), dict)


def test_logprobs_belong_to_the_text(http_cluster: HttpCluster) -> None:
    found = chat(http_cluster, logprobs=True, top_logprobs=2, options={"temperature": 0, "num_predict": 4})
    assert "".join(token["token"] for token in found["logprobs"]) == found["message"]["content"]
    assert all(len(token["top_logprobs"]) == 2 for token in found["logprobs"])


def test_a_history_with_tools_is_answered(http_cluster: HttpCluster) -> None:
    calls = [{"function": {"name": "weather", "arguments": {"city": city}}} for city in ("Oslo", "Rome")]
    messages = [
        {"role": "user", "content": "Weather in Oslo and Rome?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "-3"},
        {"role": "tool", "tool_name": "weather", "content": "20"},
    ]
    found = chat(http_cluster, messages=messages, tools=[clients.WEATHER])["message"]
    assert found["content"] or found["tool_calls"]


def test_an_answer_goes_on_where_the_last_message_is_an_assistants_text(http_cluster: HttpCluster) -> None:
    begun = {"role": "assistant", "content": "Red, green and"}
    plain = chat(http_cluster, options={"num_predict": 1})["prompt_eval_count"]
    longer = chat(http_cluster, messages=[*QUESTION, begun], options={"num_predict": 1})["prompt_eval_count"]
    assert plain < longer <= plain + 5  # the text alone, without the tokens that end a message and begin another


def test_loading_and_unloading_are_acknowledged(http_cluster: HttpCluster) -> None:
    assert http_cluster.post("/api/generate", model=MODEL).json()["done_reason"] == "load"
    assert http_cluster.post("/api/chat", model=MODEL, messages=[], keep_alive=0).json()["done_reason"] == "unload"
    assert http_cluster.get("/api/ps").json()["models"]


@pytest.mark.parametrize(
    "path", ["/ollama/api/tags", "/ollama/api/api/tags", "/api/v1/api/tags", "//api/tags", "/api/tags/"]
)
def test_other_spellings_of_a_path(http_cluster: HttpCluster, path: str) -> None:
    assert http_cluster.get(path).json()["models"][0]["name"] == TAGGED


def test_errors_have_the_form_of_ollama(http_cluster: HttpCluster) -> None:
    for response, status in (
        (http_cluster.post("/api/chat", model="llama3.2", messages=QUESTION), 404),
        (http_cluster.post("/api/chat", messages=[{"role": "user", "content": "x", "images": ["aGk="]}]), 400),
        (http_cluster.post("/api/embed", model=MODEL, input="x"), 501),
        (http_cluster.get("/api/nothing"), 404),
        (http_cluster.get("/api/chat"), 405),
    ):
        assert response.status_code == status
        assert isinstance(response.json()["error"], str)


def test_a_client_that_goes_away_frees_its_place(http_cluster: HttpCluster) -> None:
    body = {"messages": QUESTION, "options": {"num_predict": 2000}}
    with httpx.stream("POST", f"{http_cluster.url}/api/chat", json=body, timeout=PATIENCE_S) as response:
        next(response.iter_bytes())
    http_cluster.wait_until_idle()


def test_the_sdk(http_cluster: HttpCluster) -> None:
    whole = settled(lambda: clients.sdk_whole(http_cluster.url, MODEL, "Hi"))
    assert clients.sdk_streamed(http_cluster.url, MODEL, "Hi") == whole != ""
    with pytest.raises(ollama.ResponseError, match="not"):
        ollama.Client(http_cluster.url).pull("qwen3:4b")


def test_home_assistant(http_cluster: HttpCluster) -> None:
    calls, text = clients.home_assistant(http_cluster.url, TAGGED)
    assert calls or text


def test_open_webui(http_cluster: HttpCluster) -> None:
    found = clients.open_webui(http_cluster.url, title_tokens=24)
    assert found.chat
    assert found.title


def test_zed(http_cluster: HttpCluster) -> None:
    name, context, _ = clients.zed(http_cluster.url, num_predict=32)
    assert (name, context) == (MODEL, http_cluster.get("/api/ps").json()["models"][0]["context_length"])


def test_copilot(http_cluster: HttpCluster) -> None:
    assert clients.copilot(http_cluster.url, "Hi")


def test_curl_as_in_the_documents_of_ollama(http_cluster: HttpCluster) -> None:
    assert "".join(line["response"] for line in clients.curl_generate(http_cluster.url, MODEL))


@pytest.mark.parametrize("provider", ["ollama", "ollama_chat"])
def test_litellm(http_cluster: HttpCluster, provider: str) -> None:
    def text(*, stream: bool) -> tuple[str, str]:
        return clients.litellm_text(http_cluster.url, f"{provider}/{MODEL}", "Hi", stream=stream)

    assert settled(lambda: text(stream=False)) == text(stream=True)
    assert clients.litellm_information(http_cluster.url, f"{provider}/{MODEL}")["supports_function_calling"] is True


def test_langchain(http_cluster: HttpCluster) -> None:
    whole, streamed = settled(lambda: clients.langchain_texts(http_cluster.url, MODEL, "Hi"))
    assert whole == streamed != ""
    assert {"name", "age"} <= set(clients.langchain_schema(http_cluster.url, MODEL))


def test_the_package_from_npm(http_cluster: HttpCluster) -> None:
    found = clients.npm_turn(http_cluster.url, MODEL)
    assert found["models"] == [TAGGED]
    assert found["text"] or found["calls"]


def test_the_program_llm(http_cluster: HttpCluster, tmp_path: Path) -> None:
    options = ("-o", "temperature", "0", "-o", "max_tokens", "10")
    assert clients.llm(http_cluster.url, tmp_path, "-m", "edgepp", *options, "Hi")


def test_the_list_is_there_while_answers_are_made(http_cluster: HttpCluster) -> None:
    results: list[int] = []

    def ask(read: Callable[[], httpx.Response]) -> None:
        results.append(read().status_code)

    body = {"messages": QUESTION, "stream": False, "options": {"num_predict": 40}}
    asking = [threading.Thread(target=ask, args=(lambda: http_cluster.post("/api/chat", **body),)) for _ in range(4)]
    for thread in asking:
        thread.start()
    assert http_cluster.get("/api/tags").json()["models"]
    for thread in asking:
        thread.join()
    eventually("all answers are there", lambda: results == [200] * 4)
