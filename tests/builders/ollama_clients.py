"""Real clients of Ollama's API: the SDKs themselves, and the requests of programs that cannot run in a test."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests.builders.npm_clients import client_environment, npm_library
from tests.builders.ollama_lines import check_listed, strict_lines

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # LiteLLM would ask the internet for prices
PATIENCE_S = 300.0
GREEDY: Mapping[str, Any] = {"temperature": 0, "num_predict": 24}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tell the weather of a city.", "parameters": SCHEMA},
}
Called = list[tuple[str, dict[str, Any]]]


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def sdk_whole(url: str, model: str, text: str) -> str:
    """The answer of the SDK, whole."""
    return ollama.Client(url).chat(model, _user(text), options=GREEDY).message.content or ""


def sdk_streamed(url: str, model: str, text: str) -> str:
    """The answer of the SDK, streamed and joined."""
    parts = ollama.Client(url).chat(model, _user(text), options=GREEDY, stream=True)
    return "".join(part.message.content or "" for part in parts)


def home_assistant(url: str, chosen: str) -> tuple[Called, str]:
    """The calls and the text that Home Assistant gets with the model that its user has chosen.

    The set-up lists the models, and pulls the chosen one unless exactly its name is listed. The result of a tool
    carries neither the name of the tool nor the id of its call.
    """
    return asyncio.run(_home_assistant(url, chosen))


async def _home_assistant(url: str, chosen: str) -> tuple[Called, str]:
    client = ollama.AsyncClient(url, headers={"Authorization": "Bearer anything"})
    listed = {model["model"] for model in (await client.list()).get("models", [])}
    if chosen not in listed:
        await client.pull(chosen)
    messages = [ollama.Message(role="system", content="You run a house."), ollama.Message(role="user", content="Lamp!")]
    calls: Called = []
    for _ in range(3):
        parts = await client.chat(
            chosen,
            list(messages),
            tools=[{"type": "function", "function": {"name": "HassTurnOn", "parameters": SCHEMA}}],
            stream=True,
            keep_alive=-1,
            options={"num_ctx": 8192.0, **GREEDY},
            think=False,
        )
        message = _joined([part.message async for part in parts])
        messages.append(message)
        for call in message.tool_calls or ():
            calls.append((call.function.name, dict(call.function.arguments)))
            messages.append(ollama.Message(role="tool", content='{"success": true}'))
        if not message.tool_calls:
            break
    return calls, messages[-1].content or ""


def _joined(messages: Iterable[ollama.Message]) -> ollama.Message:
    parts = list(messages)
    calls = [call for part in parts for call in part.tool_calls or ()]
    content = "".join(part.content or "" for part in parts)
    return ollama.Message(role="assistant", content=content, tool_calls=calls or None)


@dataclass(frozen=True)
class OpenWebUi:
    """Models that Open WebUI has found, and the answers that it got."""

    version: str
    model: dict[str, Any]
    loaded: list[dict[str, Any]]
    chat: str
    title: str
    tags: str


def open_webui(url: str, title_tokens: int = 1000) -> OpenWebUi:
    """Verify the connection, list the models, chat, ask for title and tags: with the requests of Open WebUI 0.12.

    ``title_tokens`` is the limit of a title, which a small model may fill.
    """
    headers = {
        "Content-Type": "application/json",
        "Authorization": "Bearer sk-none",
        "X-OpenWebUI-User-Name": "Ann%20Example",
        "X-OpenWebUI-Chat-Id": "0b5f",
    }
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S) as client:
        version = client.get("/api/version").raise_for_status().json()["version"]
        (model,) = client.get("/api/tags").raise_for_status().json()["models"]
        loaded = client.get("/api/ps").raise_for_status().json()["models"]
        name = {"model": model["model"]}
        options = {"temperature": 0.0, "repeat_penalty": 0}
        limited = {**options, "num_predict": 24}  # by the settings of the model, so that a small one ends
        body = {**name, "messages": _user("Hi"), "options": limited, "stream": True, "tools": OPEN_WEBUI_TOOLS}
        chat = client.post("/api/chat", content=json.dumps(body)).raise_for_status()
        asked = {
            **name,
            "messages": _user(_TITLE),
            "options": {**options, "num_predict": title_tokens},
            "stream": False,
        }
        title = client.post("/api/chat", content=json.dumps(asked)).raise_for_status().json()
        asked = {**name, "messages": _user(_TAGS), "options": limited, "stream": False}
        tags = client.post("/api/chat", content=json.dumps(asked)).raise_for_status().json()
    text = "".join(line["message"]["content"] for line in strict_lines(chat.content))
    return OpenWebUi(version, model, loaded, text, title["message"]["content"], tags["message"]["content"])


def open_webui_by_openai(url: str) -> OpenWebUi:
    """The same with the requests of its connection to OpenAI's API."""
    with httpx.Client(base_url=f"{url}/v1", headers={"Authorization": "Bearer any"}, timeout=PATIENCE_S) as client:
        (model,) = client.get("/models").raise_for_status().json()["data"]
        body = {"stream": True, "model": model["id"], "messages": _user("Hi"), "tools": OPEN_WEBUI_TOOLS}
        chat = client.post("/chat/completions", json=body).raise_for_status().text
        asked = {"model": model["id"], "messages": _user(_TITLE), "stream": False, "max_tokens": 1000}
        title = client.post("/chat/completions", json=asked).raise_for_status().json()
        asked = {"model": model["id"], "messages": _user(_TAGS), "stream": False}
        tags = client.post("/chat/completions", json=asked).raise_for_status().json()
    events = [line.removeprefix("data: ") for line in chat.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    said = [one["choices"][0]["message"]["content"] for one in (title, tags)]
    return OpenWebUi("", model, [], text, *said)


_TITLE = '### Task:\nGenerate a concise title.\n### Output:\nJSON format: { "title": "…" }'
_TAGS = '### Task:\nGenerate 1-3 broad tags.\n### Output:\nJSON format: { "tags": ["…", "…"] }'
OPEN_WEBUI_TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}
    for name, parameters in (
        ("get_current_timestamp", {"properties": {}, "type": "object"}),
        (
            "search_chats",
            {
                "properties": {
                    "query": {"description": "Words to find.", "type": "string"},
                    "count": {"default": 5, "description": "How many.", "type": "integer"},
                    "start": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
                },
                "required": ["query"],
                "type": "object",
            },
        ),
    )
]
"""Tools as Open WebUI 0.12 offers them in each chat, of which it has 36."""


def zed(url: str, num_predict: int | None = None) -> tuple[str, int, Called]:
    """The name, the context and the calls that Zed gets, with the requests of Zed: every line must parse."""
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        (model,) = client.get("/api/tags").raise_for_status().json()["models"]
        check_listed(model)
        shown = client.post("/api/show", json={"model": model["name"]}).raise_for_status().json()
        family = shown["model_info"]["general.architecture"]
        body = {
            "model": model["name"],
            "messages": [{"role": "system", "content": "You edit code."}, *_user("List the files.")],
            "stream": True,
            "keep_alive": -1,
            "options": {"num_ctx": 16384, "num_predict": num_predict, "stop": None, "temperature": 0.0, "top_p": None},
            "tools": [
                {"type": "function", "function": {"name": "terminal", "description": "Run.", "parameters": SCHEMA}}
            ],
            "think": None,
        }
        lines = strict_lines(client.post("/api/chat", json=body).raise_for_status().content)
    calls = [call["function"] for line in lines for call in line["message"].get("tool_calls", [])]
    context = shown["model_info"][f"{family}.context_length"]
    return shown["model_info"]["general.basename"], context, [(call["name"], call["arguments"]) for call in calls]


def copilot(url: str, text: str) -> str:
    """The answer that Copilot gets: version, list and details over Ollama's API, the chat over OpenAI's."""
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        version = client.get("/api/version").raise_for_status().json()["version"]
        assert newer_or_same([int(part) for part in version.split(".")], [0, 6, 4])
        (model,) = client.get("/api/tags").raise_for_status().json()["models"]
        shown = client.post("/api/show", json={"model": model["model"]}).raise_for_status().json()
        information = shown["model_info"]
        assert information["general.basename"]
        assert information[f"{information['general.architecture']}.context_length"] > 0
        assert "tools" in shown["capabilities"]
        body = {"model": model["model"], "messages": _user(text), "stream": True, "max_tokens": 24, "temperature": 0}
        stream = client.post("/v1/chat/completions", json=body).raise_for_status().text
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def newer_or_same(found: list[int], least: list[int]) -> bool:
    """Whether a version of three whole numbers is at least another, compared part by part."""
    return next((have > need for have, need in zip(found, least, strict=True) if have != need), True)


def curl_generate(url: str, model: str) -> list[dict[str, Any]]:
    """The lines that curl prints for the first command of Ollama's documents, which sends no content type of JSON."""
    body = json.dumps({"model": model, "prompt": "Why is the sky blue?", "options": GREEDY})
    line = ["curl", "--silent", "--fail-with-body", "--no-buffer", f"{url}/api/generate", "-d", body]
    done = subprocess.run(line, capture_output=True, check=True, timeout=PATIENCE_S)
    return strict_lines(done.stdout, chat=False)


def litellm_text(url: str, model: str, text: str, *, stream: bool) -> tuple[str, str]:
    """The text and the reason of its end that LiteLLM, and so aider, gets."""
    import litellm

    options = {"temperature": 0, "max_tokens": 24}
    found: Any = litellm.completion(model, _user(text), api_base=url, stream=stream, timeout=PATIENCE_S, **options)
    if not stream:
        return found.choices[0].message.content or "", found.choices[0].finish_reason
    chunks = list(found)
    joined = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return joined, next(chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason)


def litellm_information(url: str, model: str) -> dict[str, Any]:
    """Facts that LiteLLM finds about a model."""
    from litellm.llms.ollama.common_utils import OllamaModelInfo

    return dict(OllamaModelInfo().get_model_info(model, api_base=url) or {})


def litellm_tool(url: str, model: str, *, stream: bool) -> tuple[str, Any, str]:
    """The name and arguments of the call that LiteLLM gets, and the answer to the tool's result."""
    import litellm

    messages = _user("Weather in Oslo?")
    found: Any = litellm.completion(model, messages, api_base=url, tools=[WEATHER], stream=stream, timeout=PATIENCE_S)
    whole: Any = litellm.stream_chunk_builder(list(found)) if stream else found
    (call,) = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == "tool_calls"
    messages += [whole.choices[0].message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "-3"}]
    after: Any = litellm.completion(model, messages, api_base=url, tools=[WEATHER], timeout=PATIENCE_S)
    return call.function.name, json.loads(call.function.arguments), after.choices[0].message.content


def _langchain(url: str, model: str) -> Any:
    from langchain_ollama import ChatOllama

    return ChatOllama(base_url=url, model=model, temperature=0, num_predict=24, validate_model_on_init=True)


def langchain_texts(url: str, model: str, text: str) -> tuple[str, str]:
    """The answer that LangChain gets, whole and streamed."""
    chat = _langchain(url, model)
    return chat.invoke(text).content, "".join(chunk.content for chunk in chat.stream(text))


def langchain_tool(url: str, model: str) -> tuple[str, Any, str]:
    """The name and arguments of the call that LangChain gets, and the answer to the tool's result."""
    from langchain_core.messages import HumanMessage, ToolMessage

    chat = _langchain(url, model).bind_tools([WEATHER])
    question = HumanMessage("Weather in Oslo?")
    asked = chat.invoke([question])
    (call,) = asked.tool_calls
    after = chat.invoke([question, asked, ToolMessage("-3", tool_call_id=call["id"])])
    return call["name"], call["args"], after.content


def langchain_schema(url: str, model: str) -> Any:
    """The value that LangChain gets for a schema."""
    schema = {
        "title": "Person",
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
    }
    return _langchain(url, model).with_structured_output(schema, method="json_schema").invoke("Ann is 3.")


def npm_turn(url: str, model: str) -> dict[str, Any]:
    """The listed models, the calls and the text that the npm package gets in one turn with a tool."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = Path(__file__).parents[1] / "clients" / "ollama_turn.mjs"
    line = [node, str(script), str(npm_library("ollama") / "ollama"), url, model]
    done = subprocess.run(line, capture_output=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def llm(url: str, home: Path, *arguments: str) -> str:
    """Output of ``llm``, which knows the server over OpenAI's API as ``edgepp``, and by its Ollama plugin."""
    home.mkdir(exist_ok=True)
    (home / "extra-openai-models.yaml").write_text(
        "- model_id: edgepp\n  model_name: smollm2-135m\n  supports_tools: true\n  supports_schema: true\n"
        f"  api_base: {url}/v1\n  api_key_name: none\n"
    )
    settings = {"LLM_USER_PATH": str(home), "OLLAMA_HOST": url, "NO_PROXY": "*", "OPENAI_API_KEY": "none"}
    environment = client_environment(home, settings)
    line = [sys.executable, "-m", "llm", *arguments]
    done = subprocess.run(line, capture_output=True, check=False, timeout=PATIENCE_S, env=environment, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
