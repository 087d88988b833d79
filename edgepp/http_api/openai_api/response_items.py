"""Output items of the Responses API while they grow: each gives the events of its beginning, its growth and its end.

Events have no ``sequence_number`` here; ``response_events`` numbers them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from edgepp.http_api.generation import TokenLogprob
from edgepp.http_api.openai_api.logprobs import chat_logprobs
from edgepp.http_api.openai_api.response_tools import DeclaredTool

Event: TypeAlias = dict[str, Any]
ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class OutputItem:
    """An item of ``output``: its id, and its place in ``output``."""

    def __init__(self, id_: str, index: int) -> None:
        self.id = id_
        self.index = index

    def body(self, status: ItemStatus) -> Event:
        """The item with its present content."""
        raise NotImplementedError

    def began(self) -> list[Event]:
        """The events of its beginning."""
        return [self._item_event("response.output_item.added", "in_progress")]

    def ended(self, status: ItemStatus) -> list[Event]:
        """The events of its end."""
        return [self._item_event("response.output_item.done", status)]

    def _item_event(self, kind: str, status: ItemStatus) -> Event:
        return {"type": kind, "output_index": self.index, "item": self.body(status)}

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self.id, "output_index": self.index, **fields}


class MessageItem(OutputItem):
    """Text of the answer, as a message with one part."""

    def __init__(self, id_: str, index: int) -> None:
        super().__init__(id_, index)
        self._text = ""
        self._logprobs: list[Event] = []
        self._open = False

    def body(self, status: ItemStatus) -> Event:
        """The message, without a part before its first part has begun."""
        content = [self._part()] if self._open else []
        return {"type": "message", "id": self.id, "status": status, "role": "assistant", "content": content}

    def began(self) -> list[Event]:
        """The message and its part."""
        events = super().began()
        self._open = True
        return [*events, self._event("response.content_part.added", content_index=0, part=self._part())]

    def grow(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> list[Event]:
        """More text."""
        self._text += text
        encoded = chat_logprobs(logprobs)["content"]
        self._logprobs += encoded
        event = self._event("response.output_text.delta", content_index=0, delta=text, logprobs=_brief(encoded))
        return [event]

    def ended(self, status: ItemStatus) -> list[Event]:
        """The whole text, the part and the message."""
        done = self._event(
            "response.output_text.done", content_index=0, text=self._text, logprobs=_brief(self._logprobs)
        )
        part = self._event("response.content_part.done", content_index=0, part=self._part())
        return [done, part, *super().ended(status)]

    def _part(self) -> Event:
        return {"type": "output_text", "annotations": [], "logprobs": self._logprobs[:], "text": self._text}


class ReasoningItem(OutputItem):
    """Reasoning before the answer, as its text."""

    def __init__(self, id_: str, index: int) -> None:
        super().__init__(id_, index)
        self._text = ""
        self._open = False

    def body(self, status: ItemStatus) -> Event:
        """The reasoning."""
        parts = [self._part()] if self._open else []
        return {"type": "reasoning", "id": self.id, "status": status, "summary": [], "content": parts}

    def began(self) -> list[Event]:
        """The item and its part."""
        events = super().began()
        self._open = True
        return [*events, self._event("response.content_part.added", content_index=0, part=self._part())]

    def grow(self, text: str) -> list[Event]:
        """More text."""
        self._text += text
        return [self._event("response.reasoning_text.delta", content_index=0, delta=text)]

    def ended(self, status: ItemStatus) -> list[Event]:
        """The whole text, the part and the item."""
        done = self._event("response.reasoning_text.done", content_index=0, text=self._text)
        part = self._event("response.content_part.done", content_index=0, part=self._part())
        return [done, part, *super().ended(status)]

    def _part(self) -> Event:
        return {"type": "reasoning_text", "text": self._text}


class SummaryItem(ReasoningItem):
    """Reasoning before the answer, as the summary that the client asked for: the one form that Codex shows."""

    def body(self, status: ItemStatus) -> Event:
        """The reasoning."""
        parts = [self._part()] if self._open else []
        return {"type": "reasoning", "id": self.id, "status": status, "summary": parts}

    def began(self) -> list[Event]:
        """The item and its part."""
        events = OutputItem.began(self)
        self._open = True
        return [*events, self._event("response.reasoning_summary_part.added", summary_index=0, part=self._part())]

    def grow(self, text: str) -> list[Event]:
        """More text."""
        self._text += text
        return [self._event("response.reasoning_summary_text.delta", summary_index=0, delta=text)]

    def ended(self, status: ItemStatus) -> list[Event]:
        """The whole text, the part and the item."""
        done = self._event("response.reasoning_summary_text.done", summary_index=0, text=self._text)
        part = self._event("response.reasoning_summary_part.done", summary_index=0, part=self._part())
        return [done, part, *OutputItem.ended(self, status)]

    def _part(self) -> Event:
        return {"type": "summary_text", "text": self._text}


class CallItem(OutputItem):
    """A call of a function."""

    def __init__(self, id_: str, index: int, call_id: str, tool: DeclaredTool) -> None:
        super().__init__(id_, index)
        self._call_id = call_id
        self._tool = tool
        self._arguments = ""

    def body(self, status: ItemStatus) -> Event:
        """The call, with its name at all times: Codex reads the name in the last event alone."""
        return {
            "type": "function_call",
            "id": self.id,
            "status": status,
            "call_id": self._call_id,
            **self._tool.names(),
            "arguments": self._arguments,
        }

    def grow(self, arguments: str) -> list[Event]:
        """More of the arguments."""
        self._arguments += arguments
        return [self._event("response.function_call_arguments.delta", delta=arguments)]

    def ended(self, status: ItemStatus) -> list[Event]:
        """The whole arguments and the call."""
        done = self._event("response.function_call_arguments.done", arguments=self._arguments)
        return [done, *super().ended(status)]


class CustomCallItem(CallItem):
    """A call of a custom tool, whose one argument is its ``input``, told in one piece since it must be decoded."""

    def body(self, status: ItemStatus) -> Event:
        """The call; its input is empty before it has ended."""
        text = "" if status == "in_progress" else custom_input(self._arguments)
        return {
            "type": "custom_tool_call",
            "id": self.id,
            "call_id": self._call_id,
            **self._tool.names(),
            "input": text,
        }

    def grow(self, arguments: str) -> list[Event]:
        """Nothing yet."""
        self._arguments += arguments
        return []

    def ended(self, status: ItemStatus) -> list[Event]:
        """The whole input and the call."""
        text = custom_input(self._arguments)
        delta = self._event("response.custom_tool_call_input.delta", delta=text)
        done = self._event("response.custom_tool_call_input.done", input=text)
        return [delta, done, *OutputItem.ended(self, status)]


def custom_input(arguments: str) -> str:
    """The input in the arguments of a custom tool; the arguments themselves if they are no object of one string."""
    try:
        values = json.loads(arguments)
    except ValueError:
        return arguments
    texts = list(values.values()) if isinstance(values, dict) else []
    return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else arguments


def _brief(logprobs: list[Event]) -> list[Event]:
    """The same without bytes, which events of text do not have."""
    return [
        {
            "token": one["token"],
            "logprob": one["logprob"],
            "top_logprobs": [{"token": top["token"], "logprob": top["logprob"]} for top in one["top_logprobs"]],
        }
        for one in logprobs
    ]
