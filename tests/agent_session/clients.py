"""Coding agents that play a ``Recording`` against a server: each sends its history as a real client of its API does.

The history holds the answers of the served model as the API gave them, so that whatever the server makes of them on
their way back shows in the cached share of the next prompt.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anthropic
import ollama
import openai

from tests.agent_session.recording import Recording, Turn

ANSWER_TOKENS = 32
"""Tokens of an answer at most: the real clients ask for thousands."""
KEY = "a-key"
TITLE_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"title": {"type": "string"}},
    "required": ["title"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Call:
    """A tool call of an answer."""

    id: str
    name: str


@dataclass(frozen=True)
class Spent:
    """Tokens of a prompt, and how many of them the stages still held."""

    prompt_tokens: int
    cached_tokens: int

    @property
    def cached_share(self) -> float:
        """The part of the prompt that needed no computing."""
        return self.cached_tokens / self.prompt_tokens


@dataclass
class Agent(ABC):
    """A client with the history of its session."""

    url: str
    model: str
    recording: Recording
    all_cached: Callable[[], int]
    """Tokens of all prompts so far that the stages still held, for an API that does not tell."""
    history: list[dict[str, Any]] = field(default_factory=list)
    calls: Sequence[Call] = ()
    """The calls of the newest answer."""

    def play(self, turn: Turn) -> Spent:
        """Send one turn, and take the answer into the history."""
        results = [(call, "Denied." if index else turn.result or "Denied.") for index, call in enumerate(self.calls)]
        user = turn.user if turn.result is None or results else f"Here is what you need:\n{turn.result}"
        self.history += self.told(results, user, turn.notes)
        return self.ask(turn.calls)

    @abstractmethod
    def told(self, results: list[tuple[Call, str]], user: str | None, notes: Sequence[str]) -> list[dict[str, Any]]:
        """The messages of the client's side of a turn."""

    @abstractmethod
    def ask(self, must_call: bool) -> Spent:
        """Ask for the answer to the history."""

    @abstractmethod
    def ask_for_title(self) -> None:
        """The short request beside the conversation that real clients send."""


class ClaudeCode(Agent):
    """Anthropic's messages, as Claude Code sends them: a header that changes, notes as system messages, cache marks."""

    @contextmanager
    def _client(self) -> Iterator[anthropic.Anthropic]:
        with anthropic.Anthropic(base_url=self.url, auth_token=KEY, max_retries=0) as client:
            yield client

    def told(self, results: list[tuple[Call, str]], user: str | None, notes: Sequence[str]) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = [
            {"tool_use_id": call.id, "type": "tool_result", "content": result, "is_error": False}
            for call, result in results
        ]
        reminders = [note for note in notes if note.startswith("<system-reminder>")]
        blocks += [{"type": "text", "text": text} for text in [*reminders, *([user] if user else [])]]
        system = [{"role": "system", "content": note} for note in notes if note not in reminders]
        return [{"role": "user", "content": blocks}, *system]

    def ask(self, must_call: bool) -> Spent:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*self.history[:-1], _marked(self.history[-1])],
            "system": self._system(self.recording.system),
            "tools": [
                {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]}
                for tool in self.recording.tools
            ],
            "metadata": {"user_id": json.dumps({"device_id": "0", "session_id": str(uuid.uuid4())})},
            "max_tokens": ANSWER_TOKENS,
            "thinking": {"type": "adaptive", "display": "updates"},
            "output_config": {"effort": "high"},
        }
        if must_call:
            body["tool_choice"] = {"type": "any"}
        with self._client() as client, client.messages.stream(**body) as stream:
            answer = stream.get_final_message()
        self.calls = [Call(block.id, block.name) for block in answer.content if block.type == "tool_use"]
        content = [block.to_dict() for block in answer.content]
        if content:
            self.history.append({"role": "assistant", "content": content})
        cached = answer.usage.cache_read_input_tokens or 0
        return Spent(answer.usage.input_tokens + cached, cached)

    def ask_for_title(self) -> None:
        with self._client() as client:
            client.messages.create(
                model=self.model,
                max_tokens=ANSWER_TOKENS,
                system=self._system(self.recording.title),
                messages=[{"role": "user", "content": self.recording.turns[0].user or ""}],
                output_config={"format": {"type": "json_schema", "schema": TITLE_SCHEMA}},
            )

    def _system(self, text: str) -> list[Any]:
        header = f"x-anthropic-billing-header: cc_version=2.1.328.{uuid.uuid4().hex[:3]}; cc_entrypoint=cli;"
        mark = {"cache_control": {"type": "ephemeral"}}
        return [{"type": "text", "text": header}, {"type": "text", "text": text, **mark}]


def _marked(message: dict[str, Any]) -> dict[str, Any]:
    """The last message with the mark for the cache, which the message loses in the next request."""
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {**message, "content": [*blocks[:-1], {**blocks[-1], "cache_control": {"type": "ephemeral"}}]}


@dataclass
class OpenAIAgent(Agent):
    """What the agents of OpenAI's APIs share."""

    @contextmanager
    def _client(self) -> Iterator[Any]:
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0) as client:
            yield client


class Codex(OpenAIAgent):
    """OpenAI's responses, as Codex sends them: the whole history as items, notes as developer messages."""

    def told(self, results: list[tuple[Call, str]], user: str | None, notes: Sequence[str]) -> list[dict[str, Any]]:
        outputs = [{"type": "function_call_output", "call_id": call.id, "output": result} for call, result in results]
        developer = [_item("developer", note) for note in notes]
        return [*outputs, *developer, *([_item("user", user)] if user else [])]

    def ask(self, must_call: bool) -> Spent:
        with self._client() as client:
            events = client.responses.create(
                model=self.model,
                instructions=self.recording.system,
                input=self.history,
                tools=[{"type": "function", "strict": False, **tool} for tool in self.recording.tools],
                tool_choice="required" if must_call else "auto",
                parallel_tool_calls=True,
                reasoning={"summary": "auto"},
                store=False,
                stream=True,
                include=["reasoning.encrypted_content"],
                prompt_cache_key=str(uuid.uuid4()),
                max_output_tokens=ANSWER_TOKENS,
            )
            answer = [
                event.response for event in events if event.type in ("response.completed", "response.incomplete")
            ][-1]
        self.calls = [Call(item.call_id, item.name) for item in answer.output if item.type == "function_call"]
        self.history += [_sent_back(item.to_dict()) for item in answer.output]
        return Spent(answer.usage.input_tokens, answer.usage.input_tokens_details.cached_tokens)

    def ask_for_title(self) -> None:
        with self._client() as client:
            client.responses.create(
                model=self.model,
                instructions=self.recording.title,
                input=self.recording.turns[0].user,
                store=False,
                max_output_tokens=ANSWER_TOKENS,
            )


def _item(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def _sent_back(item: dict[str, Any]) -> dict[str, Any]:
    """An item of an answer without id and status, as Codex sends it back."""
    return {name: value for name, value in item.items() if name not in ("id", "status")}


class ChatAgent(OpenAIAgent):
    """OpenAI's chat completions, as agents over them send them: notes as system messages where they came up."""

    def told(self, results: list[tuple[Call, str]], user: str | None, notes: Sequence[str]) -> list[dict[str, Any]]:
        first = [] if self.history else [{"role": "system", "content": self.recording.system}]
        outputs = [{"role": "tool", "tool_call_id": call.id, "content": result} for call, result in results]
        asked = [{"role": "user", "content": [{"type": "text", "text": user}]}] if user else []
        return [*first, *outputs, *asked, *({"role": "system", "content": note} for note in notes)]

    def ask(self, must_call: bool) -> Spent:
        with self._client() as client:
            answer = client.chat.completions.create(
                model=self.model,
                messages=self.history,
                tools=_functions(self.recording),
                tool_choice="required" if must_call else "auto",
                max_tokens=ANSWER_TOKENS,
            )
        message = answer.choices[0].message
        self.calls = [Call(call.id, call.function.name) for call in message.tool_calls or ()]
        self.history.append(_with_whole_arguments(message.to_dict()))
        return Spent(answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens)

    def ask_for_title(self) -> None:
        with self._client() as client:
            client.chat.completions.create(
                model=self.model, max_tokens=ANSWER_TOKENS, messages=_title_messages(self.recording)
            )


def _with_whole_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """An answer whose calls can be sent back: an agent takes arguments that were cut off for none."""
    for call in message.get("tool_calls") or ():
        try:
            json.loads(call["function"]["arguments"])
        except ValueError:
            call["function"]["arguments"] = "{}"
    return message


class OllamaAgent(Agent):
    """Ollama's chat, whose calls have no ids, and whose answers do not tell what was cached."""

    def told(self, results: list[tuple[Call, str]], user: str | None, notes: Sequence[str]) -> list[dict[str, Any]]:
        first = [] if self.history else [{"role": "system", "content": self.recording.system}]
        outputs = [{"role": "tool", "tool_name": call.name, "content": result} for call, result in results]
        asked = [{"role": "user", "content": user}] if user else []
        return [*first, *outputs, *asked, *({"role": "system", "content": note} for note in notes)]

    def ask(self, must_call: bool) -> Spent:
        before = self.all_cached()
        answer = self._chat(self.history, _functions(self.recording))
        self.calls = [Call("", call.function.name) for call in answer.message.tool_calls or ()]
        self.history.append(answer.message.model_dump(exclude_none=True))
        return Spent(answer.prompt_eval_count or 0, self.all_cached() - before)

    def ask_for_title(self) -> None:
        self._chat(_title_messages(self.recording), [])

    def _chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> ollama.ChatResponse:
        client = ollama.Client(host=self.url)
        try:
            return client.chat(self.model, messages, tools=tools, options={"num_predict": ANSWER_TOKENS})
        finally:
            client._client.close()  # the class has no way of its own


def _functions(recording: Recording) -> list[dict[str, Any]]:
    return [{"type": "function", "function": tool} for tool in recording.tools]


def _title_messages(recording: Recording) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": recording.title},
        {"role": "user", "content": recording.turns[0].user or ""},
    ]


AGENTS: tuple[type[Agent], ...] = (ClaudeCode, Codex, ChatAgent, OllamaAgent)
