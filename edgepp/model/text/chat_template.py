"""Chat templates rendered as transformers renders them, in a sandbox that also tells whose each character is."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from edgepp.model.text.content_origin import MessageText, holds_content, joined, located, spans

LONGEST = 1 << 24
"""Characters that a template may give."""
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""Roles that a template may make markers of; any other is text of the message like its content."""

_EXACT = frozenset({"d", "default", "lower", "string", "trim", "upper"})
"""Filters that hand a text on, or to one method of it."""


def render(
    template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation up to where the answer begins, and the ranges of it that came from the messages.

    ``variables`` are the template's own: what is in them counts as the template's text.

    Raises:
        Exception: anything that a template can raise.
    """
    told = [{_key(key): _told(key, value) for key, value in message.items()} for message in messages]
    text = _compiled(template).render(
        messages=told, tools=None, documents=None, add_generation_prompt=True, **dict(variables)
    )
    return str.__add__(text, ""), spans(text)


def _key(key: str) -> str:
    return key if key in ("role", "content") else MessageText(key)


def _told(key: str, value: Any) -> Any:
    return value if key == "role" and value in ROLES else _content(value)


def _content(value: Any) -> Any:
    if isinstance(value, str):
        return MessageText(value)
    if isinstance(value, list | tuple):
        return [_content(part) for part in value]
    if isinstance(value, dict):
        return {MessageText(key): _content(part) for key, part in value.items()}
    return value


@functools.lru_cache(maxsize=1)
def _compiled(template: str) -> Any:
    return _Environment().from_string(template)


def _finalized(value: Any) -> Any:
    """What a ``{{ }}`` shows: text of messages stays known inside whatever it is part of."""
    return MessageText(str(value)) if not isinstance(value, str) and holds_content(value) else value


def _concatenated(parts: Iterable[str]) -> Any:
    kept: list[str] = []
    length = 0
    for part in parts:
        length += len(part)
        if length > LONGEST:
            raise TemplateError(f"it gives more than {LONGEST} characters")
        kept.append(part)
    return joined(kept)


class _Code(CodeGenerator):
    """``a ~ b`` keeps the marks of both."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja's name
        self.write("environment.tied((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """``{% generation %}`` marks an assistant's text for training; here its body is only shown."""

    tags = {"generation"}  # noqa: RUF012 - jinja's declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_shown"), [], [], body).set_lineno(line)

    def _shown(self, caller: Macro) -> Any:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' environment for chat templates; every operation on text keeps what came from a message marked."""

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
            "strftime_now": lambda form: datetime.now().strftime(form),
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def tied(self, parts: tuple[Any, ...]) -> Any:
        return _concatenated(str(_finalized(part)) for part in parts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja's
        def again(*args: Any, **kwargs: Any) -> Any:
            return super(_Environment, __self).call(__context, __obj, *args, **kwargs)

        result = again(*args, **kwargs)
        if type(result) is not str or isinstance(__obj, Macro):  # a macro's text is marked already
            return result
        if isinstance(getattr(__obj, "__self__", None), MessageText):
            return MessageText(result)
        return located(result, again, args, kwargs) if holds_content((args, kwargs)) else result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        result = super().call_binop(context, operator, left, right)
        if type(result) is str and holds_content((left, right)):
            return located(result, lambda left, right: left % right, (left, right), {})
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and not (isinstance(obj, str) and attr == "encode")


def _marking(function: Callable[..., Any], exact: bool) -> Callable[..., Any]:
    """A filter whose text stays marked, also where it is put together of parts; an ``exact`` one keeps the marks."""

    @functools.wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
        result = function(*args, **kwargs)
        kept = exact and isinstance(args[0], MessageText) and isinstance(result, MessageText)
        if isinstance(result, str) and not kept and holds_content((args, kwargs)):
            return located(str.__str__(result), function, args, kwargs)
        return result

    return filtered


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """``dict`` without the class itself."""

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
        raise SecurityError(f"a namespace has no name {name!r}")
