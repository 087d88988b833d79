"""Which tools an answer may call, as a client asked for it, and the parts that an answer is made of. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True)
class Tool:
    """One function that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """JSON schema of the arguments, an object; empty for any object."""
    strict: bool = False
    """Whether the arguments must match ``parameters``, held by a grammar."""
    listed: bool = True
    """Whether the prompt lists the tool; False for one that the messages tell of, so that the list stays as it is."""


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request, and whether and how they are to be called."""

    tools: tuple[Tool, ...] = ()
    choice: Literal["auto", "none", "required"] = "auto"
    """``required``: at least one call, of ``named`` if that is given."""
    named: str | None = None
    """The only tool that may be called."""
    parallel: bool = True
    """Whether one answer may have several calls."""


@dataclass(frozen=True)
class Text:
    """Text of the answer outside of calls and reasoning."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Text of the reasoning before the answer."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """A call of the tool ``name`` begins."""

    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the arguments of the call that began last, as JSON text."""

    text: str


@dataclass(frozen=True)
class CallEnded:
    """The call that began last is whole: its ``CallArguments`` joined are the JSON text of one object."""


AnswerPart: TypeAlias = Text | Reasoning | CallStarted | CallArguments | CallEnded
