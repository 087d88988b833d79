"""Input items of the Responses API as the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgepp.http_api.body_decoding import converted
from edgepp.http_api.failures import RequestError
from edgepp.http_api.openai_api.content import Content, call_arguments, text_of
from edgepp.http_api.openai_api.response_body import Item, ResponsesBody
from edgepp.http_api.openai_api.response_tools import DeclaredTool, custom_arguments
from edgepp.model.text.conversation import Message

_UNREAD = (
    "reasoning",
    "web_search_call",
    "file_search_call",
    "computer_call",
    "computer_call_output",
    "image_generation_call",
    "code_interpreter_call",
    "tool_search_call",
    "tool_search_output",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "configuration_update",
    "program",
    "program_output",
)
"""Items that are left out: reasoning, which models do not read again, and what tools of OpenAI's servers did."""


def decoded_messages(body: ResponsesBody) -> list[Message]:
    """The messages in the order that they came: instructions, then input; system notes stay where they are.

    Raises:
        RequestError: there is no input, or an item is unknown, refers to something stored, or is no text.
    """
    messages = _Messages()
    if isinstance(body.instructions, str) and body.instructions:
        messages.add({"role": "system", "content": body.instructions})
    elif isinstance(body.instructions, list):
        messages.add_items(body.instructions, "instructions")
    if isinstance(body.input, str):
        messages.add({"role": "user", "content": body.input})
    else:
        messages.add_items(body.input or [], "input")
    if not messages.list:
        raise _invalid("input has no message", "input")
    return messages.list


class _Messages:
    """Messages made of items; calls that follow each other belong to one message of the assistant."""

    def __init__(self) -> None:
        self.list: list[Message] = []
        self._names: dict[str, str] = {}
        """The name of each call's tool, by the id of the call."""

    def add(self, message: Message) -> None:
        self.list.append(message)

    def add_items(self, items: Sequence[Item], where: str) -> None:
        for index, item in enumerate(items):
            self._add_item(item, f"{where}[{index}]")

    def _add_item(self, item: Item, where: str) -> None:
        kind = item.type or ("message" if item.role else "item_reference")
        match kind:
            case "message":
                self._add_message(item, where)
            case "function_call":
                self._add_call(item, where, call_arguments(item.arguments))
            case "custom_tool_call":
                self._add_call(item, where, custom_arguments(item.input or ""))
            case "function_call_output" | "custom_tool_call_output":
                self._add_output(item, where)
            case "agent_message":
                text = text_of(item.content, f"{where}.content")
                self.add({"role": "user", "content": f"Message from {item.author or 'another agent'}:\n{text}"})
            case "item_reference":
                raise _invalid(f"{where} refers to a stored item, and this server stores none", where)
            case "additional_tools":
                pass
            case _ if kind not in _UNREAD:
                raise _invalid(f"{where} is of type '{kind:.40}', which this server does not know", f"{where}.type")

    def _add_message(self, item: Item, where: str) -> None:
        text = text_of(item.content, f"{where}.content")
        last = self.list[-1] if self.list else {}
        match item.role:
            case "assistant" if last.get("tool_calls"):
                # One answer: its text came after its call.
                joined = "\n\n".join(part for part in (last["content"], text) if part)
                self.list[-1] = {**last, "content": joined or None}
            case "user" | "assistant":
                self.add({"role": item.role, "content": text})
            case "system" | "developer":
                self.add({"role": "system", "content": text})
            case _:
                raise _invalid(f"{where} has the role '{item.role or '':.40}', which does not exist", f"{where}.role")

    def _add_call(self, item: Item, where: str, arguments: Mapping[str, Any]) -> None:
        if not item.name or not item.call_id:
            missing = "call_id" if item.name else "name"
            raise _invalid(f"{where} is a call without {missing}", f"{where}.{missing}")
        name = DeclaredTool(item.name, item.namespace).model_name
        self._names[item.call_id] = name
        function = {"name": name, "arguments": arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        last = self.list[-1] if self.list else {}
        if last.get("role") == "assistant":
            calls = [*last.get("tool_calls", ()), call]
            self.list[-1] = {**last, "content": last["content"] or None, "tool_calls": calls}
        else:
            self.add({"role": "assistant", "content": None, "tool_calls": [call]})

    def _add_output(self, item: Item, where: str) -> None:
        if not item.call_id:
            raise _invalid(f"{where} is the result of a call without call_id", f"{where}.call_id")
        message = {
            "role": "tool",
            "tool_call_id": item.call_id,
            "content": _output_text(item.output, f"{where}.output"),
        }
        name = self._names.get(item.call_id) or item.name
        self.add({**message, "name": name} if name else message)


def _output_text(output: Any, where: str) -> str:
    if isinstance(output, dict):
        # Codex once sent {"content", "success"}; any other object is told as it is.
        inner = output.get("content")
        return inner if isinstance(inner, str) else msgspec.json.encode(output).decode()
    return text_of(converted(output, Content, where), where)


def _invalid(message: str, parameter: str) -> RequestError:
    return RequestError("invalid_request", message, parameter=parameter)
