"""The prompt that describes tools to a model whose chat template renders none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from edgepp.model.text.conversation import Message
from edgepp.tool_calls.tool_use import Tool

_PROMPT = """\
You may call tools. Each of the following lines is one tool: its name, its purpose, and the JSON schema of its\
 arguments.
{tools}
To call a tool, write its name and its arguments in this form, and nothing else:
<tool_call>
{{"name": "<name of the tool>", "arguments": {{<arguments as JSON>}}}}
</tool_call>
The result comes in the next message, between <tool_response> and </tool_response>. Without need of a tool, answer in \
plain text."""


def with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The messages, with the tools described behind the system messages at the beginning."""
    prompt = _PROMPT.format(tools="\n".join(map(_line, tools)))
    leading = 0
    while leading < len(messages) and messages[leading].get("role") in ("system", "developer"):
        leading += 1
    return [*messages[:leading], {"role": "system", "content": prompt}, *messages[leading:]]


def _line(tool: Tool) -> str:
    described: dict[str, Any] = {"name": tool.name}
    if tool.description:
        described["description"] = tool.description
    described["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return json.dumps(described, ensure_ascii=False)
