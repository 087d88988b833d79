"""One way in which models write calls: how it is recognised in an answer, and how a grammar writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepp.tool_calls.fenced_calls import Dropped, FencedCalls, HeadedCalls, Heads
from edgepp.tool_calls.marked_calls import AnyCalls, NamedCalls, WholeCalls
from edgepp.tool_calls.readers import Call, Reader
from edgepp.tool_calls.tagged_grammar import WrittenTags
from edgepp.tool_calls.tool_use import Tool

Parse = Callable[[str, Mapping[str, Tool]], list[Call] | None]
_FUNCTION = re.compile(r"\s*([\w.:/-]+)>\s*(?=\{)")


@dataclass(frozen=True)
class WrittenCall:
    """Form in which a grammar writes calls: ``{name}`` stands for the name of a tool, ``{arguments}`` for JSON."""

    call: str
    before: str = ""
    between: str = ""
    after: str = ""


@dataclass(frozen=True)
class Family:
    """One way to write calls."""

    name: str
    written: WrittenCall
    marker: str = ""
    """Text that begins calls; empty where calls begin with their JSON."""
    closing: str = ""
    parse: Parse | None = None
    """Reader of whole calls between ``marker`` and ``closing``; None where calls are JSON."""
    holds_json_calls: bool = True
    """Whether JSON between the markers is a call with name and arguments, whatever ``parse`` reads."""
    tags: WrittenTags | None = None
    """Tags with which a grammar writes calls around arguments, where it can; ``written`` is for other calls."""
    named: re.Pattern[str] | None = None
    """Text between marker and JSON, for calls as a name and JSON."""
    headed: Heads | None = None
    """Texts around arguments, for calls that each have a head, up to ``closing``."""
    is_fenced: bool = False
    """Whether the list of calls stands in a fence of Markdown."""
    wrappers: tuple[str, ...] = ()
    """Markers around answers that are no part of the text."""
    bare: bool = False
    """Whether calls also come without marker, as JSON or like Python."""
    function_tags: bool = False
    """Whether calls also come as ``<function=name>{…}</function>``."""
    takes_several: bool = True
    """Whether a grammar allows several calls in one answer; models that never learned calls would not end them."""

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """The text of calls, each with ``name`` and ``arguments``, as the model writes it, as far as JSON goes."""
        texts = []
        for call in calls:
            before, _, after = self.written.call.partition("{arguments}")
            arguments = json.dumps(call["arguments"], ensure_ascii=False)
            texts.append(before.replace("{name}", str(call.get("name", ""))) + arguments + after)
        return self.written.before + self.written.between.join(texts) + self.written.after

    def markers(self, tools: Mapping[str, Tool]) -> dict[str, Callable[[], Reader]]:
        """The texts that begin calls, and how to make the readers of what follows."""
        names = tuple(tools)
        markers: dict[str, Callable[[], Reader]] = dict.fromkeys(self.wrappers, Dropped)
        if self.headed is not None:
            heads = self.headed
            markers[self.marker] = lambda: HeadedCalls(names, self.marker, self.closing, heads)
        elif self.is_fenced:
            markers[self.marker] = lambda: FencedCalls(names, self.marker)
        elif self.parse is not None:
            parse = self.parse
            markers[self.marker] = lambda: WholeCalls(
                names, self.marker, self.closing, lambda text: parse(text, tools), self.holds_json_calls
            )
        elif self.marker:
            closings = (self.closing,) if self.closing else ()
            markers[self.marker] = lambda: AnyCalls(names, self.marker, closings, self.named)
        if self.function_tags:
            markers["<function="] = lambda: NamedCalls(names, "<function=", _FUNCTION, "</function>")
        return markers
