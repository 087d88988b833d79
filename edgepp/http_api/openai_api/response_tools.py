"""Tools of the Responses API: functions, namespaces of functions, and custom tools, all as functions of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from edgepp.http_api.failures import RequestError
from edgepp.tool_calls.tool_use import Tool, ToolUse

_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "the whole input of the tool, as plain text"}},
    "required": ["input"],
    "additionalProperties": False,
}


class FunctionFields(msgspec.Struct, kw_only=True):
    """A function as Chat Completions nests it, which some clients send here too."""

    name: str = ""
    description: str | None = None
    parameters: Any = None
    """A JSON schema; checked only where the tool can be called."""
    strict: bool | None = None


class ToolSpec(FunctionFields, kw_only=True):
    """A tool: ``function``, ``namespace``, ``custom``, or one that OpenAI's servers run, which is left out."""

    type: str = "function"
    tools: list[ToolSpec] | None = None
    """The members of a namespace."""
    format: Any = None
    """Form of a custom tool's input: ``text``, or a ``grammar``."""
    function: FunctionFields | None = None


class ToolChoice(msgspec.Struct, kw_only=True):
    """A choice that names a tool, or the tools that are allowed."""

    type: str
    name: str | None = None
    namespace: str | None = None
    function: FunctionFields | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[ToolChoice] | None = None


Choice: TypeAlias = Literal["auto", "none", "required"] | ToolChoice


@dataclass(frozen=True)
class DeclaredTool:
    """A tool as its client declared it, and so the form in which the client reads a call of the tool."""

    name: str
    namespace: str | None = None
    custom: bool = False

    @property
    def model_name(self) -> str:
        """The name that the model knows."""
        return f"{self.namespace}.{self.name}" if self.namespace else self.name

    def names(self) -> dict[str, str]:
        """The fields of a call that name the tool."""
        return {"name": self.name} | ({"namespace": self.namespace} if self.namespace else {})


@dataclass(frozen=True)
class Tools:
    """The tools of one request."""

    use: ToolUse
    declared: Mapping[str, DeclaredTool]
    """The tools by the name that the model knows."""


def decoded_tools(specs: Sequence[ToolSpec], choice: Choice | None, parallel: bool) -> Tools:
    """The tools that the model may call.

    Raises:
        RequestError: a tool has no name or the name of another, or ``choice`` names none of them.
    """
    declared: dict[str, DeclaredTool] = {}
    tools: dict[str, Tool] = {}
    for index, spec in enumerate(specs):
        for one, tool in _expanded(spec, f"tools[{index}]"):
            if one.model_name in declared:
                raise _invalid(f"the tool '{one.model_name}' is declared twice", f"tools[{index}].name")
            declared[one.model_name] = one
            tools[one.model_name] = tool
    return Tools(_use(tools, choice, parallel), declared)


def _expanded(spec: ToolSpec, path: str, namespace: ToolSpec | None = None) -> list[tuple[DeclaredTool, Tool]]:
    if spec.type == "namespace" and namespace is None:
        if not spec.name:
            raise _invalid("a namespace needs a name", f"{path}.name")
        members = enumerate(spec.tools or [])
        return [one for i, member in members for one in _expanded(member, f"{path}.tools[{i}]", spec)]
    if spec.type not in ("function", "custom"):
        return []
    fields = spec.function or spec
    if not fields.name:
        raise _invalid("a tool needs a name", f"{path}.name")
    declared = DeclaredTool(fields.name, namespace.name if namespace else None, spec.type == "custom")
    description = fields.description or ""
    if declared.custom:
        return [(declared, Tool(declared.model_name, _with_format(description, spec.format), _INPUT, where=path))]
    if not isinstance(fields.parameters, dict | None):
        raise _invalid("the parameters of a tool are a JSON schema, which is an object", f"{path}.parameters")
    tool = Tool(declared.model_name, description, fields.parameters or {}, bool(fields.strict), where=path)
    return [(declared, tool)]


def _with_format(description: str, format_: Any) -> str:
    """The description of a custom tool, with the grammar of its input if it has one."""
    if not isinstance(format_, dict) or format_.get("type") != "grammar":
        return description
    grammar = f"The input follows this {format_.get('syntax', '')} grammar:\n{format_.get('definition', '')}"
    return f"{description}\n\n{grammar}" if description else grammar


def _use(tools: Mapping[str, Tool], choice: Choice | None, parallel: bool) -> ToolUse:
    every = tuple(tools.values())
    if choice is None or isinstance(choice, str):
        if choice == "required" and not every:
            raise _invalid("tool_choice is 'required', and the request has no tool that runs here", "tool_choice")
        return ToolUse(every, choice or "auto", None, parallel)
    if choice.type == "allowed_tools":
        allowed = {_named(one, tools) for one in choice.tools or [] if one.type in ("function", "custom")}
        return _use({name: tool for name, tool in tools.items() if name in allowed}, choice.mode, parallel)
    return ToolUse(every, "required", _named(choice, tools), parallel)


def _named(choice: ToolChoice, tools: Mapping[str, Tool]) -> str:
    if choice.type not in ("function", "custom"):
        raise _invalid(f"tool_choice names a tool '{choice.type}', which this server does not run", "tool_choice")
    name = choice.function.name if choice.function else choice.name or ""
    name = f"{choice.namespace}.{name}" if choice.namespace else name
    if name not in tools:
        raise _invalid(f"tool_choice names '{name}', which is none of the tools", "tool_choice.name")
    return name


def echoed(value: msgspec.Struct) -> dict[str, Any]:
    """The fields of a choice or tool that the client gave."""
    fields = {name: getattr(value, name) for name in value.__struct_fields__}
    return {name: _plain(field) for name, field in fields.items() if field is not None}


def echoed_tool(spec: ToolSpec) -> dict[str, Any]:
    """A tool as a response repeats it."""
    told = echoed(spec)
    told |= told.pop("function", {})
    if spec.type == "function":
        return {"description": None, "parameters": None, "strict": None} | told
    if not spec.name:
        told.pop("name")
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, ToolSpec):
        return echoed_tool(value)
    return echoed(value) if isinstance(value, msgspec.Struct) else value


def custom_arguments(text: str) -> dict[str, str]:
    """The arguments of a custom tool's call from its input, as ``decoded_tools`` declares them to the model."""
    return {"input": text}


def _invalid(message: str, parameter: str) -> RequestError:
    return RequestError("invalid_request", message, parameter=parameter)
