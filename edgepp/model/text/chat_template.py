"""Rendering of chat templates like in transformers, in a sandbox that tracks which characters come from messages."""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError, UndefinedError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from edgepp.model.text.content_origin import MessageText, holds_content, joined, mark_content, spans
from edgepp.model.text.conversation import Conversation

MAX_CHARACTERS = 1 << 24
"""Limit of the number of characters that a template may produce."""
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""Roles that count as text of the template; another role counts as text of the message, like its content."""

_EXACT = frozenset({"d", "default", "lower", "string", "trim", "upper"})
"""Filters that return their text unchanged, or the result of one of its methods."""


class TemplateRefusal(TemplateError):  # noqa: N818 - not an error of the template
    """The template does not take these messages, though the template takes others."""


def render(
    template: str, conversation: Conversation, variables: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """The text up to the beginning of the answer, and its ranges [start, stop) that come from the conversation.

    Text of messages, tools and the conversation's own variables comes from the conversation; ``variables`` count as
    text of the template. Ranges are in characters.

    Raises:
        TemplateRefusal: the template does not take these messages or tools.
        Exception: any other error of a template.
    """
    try:
        return _rendered(template, conversation, variables)
    except TemplateError as error:
        if not isinstance(error, UndefinedError):
            raise
        failed: Exception = error
    except _ERRORS as error:
        failed = error
    if not any(_renders(template, greeting, variables) for greeting in _GREETINGS):
        raise failed  # the template itself is broken
    raise TemplateRefusal(str(failed)) from failed


_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""Exceptions of a template that does not take a conversation."""
_FUNCTION = {"name": "greet", "description": "Greets.", "parameters": {"type": "object", "properties": {}}}
_GREETINGS = (
    Conversation.of("hi"),
    Conversation(Conversation.of("hi").messages, ({"type": "function", "function": _FUNCTION},)),
)
"""Conversations, one of which any working template takes: some templates take no conversation without tools."""


def _renders(template: str, conversation: Conversation, variables: Mapping[str, Any]) -> bool:
    try:
        _rendered(template, conversation, variables)
    except _ERRORS:
        return False
    return True


def _rendered(
    template: str, conversation: Conversation, variables: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    messages = [_marked_message(message) for message in conversation.messages]
    end = "" if not conversation.continues else str(secrets.randbelow(10**20))
    if end:
        messages[-1]["content"] = MessageText(messages[-1]["content"].rstrip() + MessageText(end))
    text = _compiled(template).render(
        {
            "documents": None,
            **{name: _content(value) for name, value in conversation.variables.items()},
            **variables,
            "messages": messages,
            "tools": _content(list(conversation.tools)) or None,
            "add_generation_prompt": not conversation.continues,
        }
    )
    if end:
        text = text[: _last(text, end)]
    return str.__add__(text, ""), spans(text)


def _last(text: str, end: str) -> int:
    """Index in ``text`` at which the last message ends, where the mark ``end`` begins.

    Raises:
        TemplateRefusal: the template did not render the mark as it is.
    """
    place = str.rfind(text, end)
    if place < 0:
        raise TemplateRefusal("it does not show the last message as it is, so an answer cannot continue it")
    return place


def _marked_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers gives it to a template: without fields of None, reasoning by two names."""
    present = {key: value for key, value in message.items() if value is not None}
    if "reasoning_content" in present:
        present = {"thinking": present["reasoning_content"], **present}
    return {_key(key): _marked_field(key, value) for key, value in present.items()}


def _key(key: str) -> str:
    return key if key in ("role", "content") else MessageText(key)


def _marked_field(key: str, value: Any) -> Any:
    return value if key == "role" and value in ROLES else _content(value)


def _content(value: Any) -> Any:
    if isinstance(value, str):
        return MessageText(value)
    if isinstance(value, list | tuple):
        return [_content(part) for part in value]
    if isinstance(value, dict):
        return {MessageText(key): _content(part) for key, part in value.items()}
    return value


@functools.lru_cache(maxsize=8)  # a model may have a template of its own for tools
def _compiled(template: str) -> Any:
    return _Environment().from_string(template)


def _finalized(value: Any) -> Any:
    """The text that ``{{ }}`` prints for ``value``: an object that holds text of messages becomes text of messages."""
    return MessageText(str(value)) if not isinstance(value, str) and holds_content(value) else value


def _concatenated(parts: Iterable[str]) -> Any:
    pieces: list[str] = []
    length = 0
    for part in parts:
        length += len(part)
        if length > MAX_CHARACTERS:
            raise TemplateError(f"it produces more than {MAX_CHARACTERS} characters")
        pieces.append(part)
    return joined(pieces)


class _Code(CodeGenerator):
    """Code generator of a template: ``a ~ b`` becomes a call that keeps the marks of both operands."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja's name
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """``{% generation %}``, which marks the assistant's text for training; its body is printed unchanged."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> Any:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of transformers for chat templates; operations on text keep characters from messages marked."""

    code_generator_class = _Code
    concat = staticmethod(_concatenated)
    intercepted_binops = frozenset({"%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_finalized
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _marking(function, name in _EXACT) for name, function in self.filters.items()}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda format_: datetime.now().strftime(format_),
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def concatenated(self, parts: tuple[Any, ...]) -> Any:
        return _concatenated(str(_finalized(part)) for part in parts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja's
        def call(*args: Any, **kwargs: Any) -> Any:
            return super(_Environment, __self).call(__context, __obj, *args, **kwargs)

        result = call(*args, **kwargs)
        if type(result) is not str or isinstance(__obj, Macro):  # the text of a macro is already marked
            return result
        if isinstance(getattr(__obj, "__self__", None), MessageText):
            return MessageText(result)
        return mark_content(result, call, args, kwargs) if holds_content((args, kwargs)) else result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        result = super().call_binop(context, operator, left, right)
        if type(result) is str and holds_content((left, right)):
            return mark_content(result, lambda left, right: left % right, (left, right), {})
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and not (isinstance(obj, str) and attr == "encode")


def _marking(function: Callable[..., Any], exact: bool) -> Callable[..., Any]:
    """A filter whose result is marked like its arguments; the marks of an ``exact`` filter's result are kept."""

    @functools.wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
        result = function(*args, **kwargs)
        kept = exact and isinstance(args[0], MessageText) and isinstance(result, MessageText)
        if isinstance(result, str) and not kept and holds_content((args, kwargs)):
            return mark_content(str.__str__(result), function, args, kwargs)
        return result

    return filtered


def _raise_exception(message: object) -> None:
    raise TemplateRefusal(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """The function ``dict`` for templates, without access to the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the name {name!r}")
