"""How a message of named fields stands in a header, and the check that each field is what was declared.

The check makes two passes in C, one over types and one over values: headers are read between two steps, when Python's
own code is gone from the caches. Where fields depend on each other, a rule of the message is the third.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from operator import contains
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

Rule: TypeAlias = Callable[[Any], str]


class _Texts(NamedTuple):
    """Strings of a bounded length and a certain form."""

    low: int
    high: int
    form: Callable[[str], bool]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and self.low <= len(value) <= self.high and self.form(value)


class _Counts(NamedTuple):
    """Bounded numbers of counts."""

    low: int
    high: int

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, tuple)
            and self.low <= len(value) <= self.high
            and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
        )


def _domain(hint: Any) -> tuple[type, Container[Any]]:
    """The type that a field's annotation asks for, and the values of that type that it allows."""
    if hint is bool:
        return bool, frozenset((False, True))
    if get_origin(hint) is Literal:
        return str, frozenset(get_args(hint))
    kind, low, high, *form = get_args(hint)
    if kind is int:
        return int, range(low, high + 1)
    return (str, _Texts(low, high, *form)) if kind is str else (tuple, _Counts(low, high))


class HeaderLayout(NamedTuple):
    """A kind of message as it stands in a header."""

    kind: Callable[..., Any]
    names: tuple[str, ...]
    types: tuple[type, ...]
    allowed: tuple[Container[Any], ...]
    rule: Rule | None
    """What is wrong with fields that are well-formed each by itself; empty where nothing is."""

    @classmethod
    def of(cls, kind: Any, rule: Rule | None = None) -> HeaderLayout:
        """The layout of a NamedTuple whose fields are annotated with their bounds."""
        hints = get_type_hints(kind, include_extras=True)
        types, allowed = zip(*(_domain(hints[name]) for name in kind._fields), strict=True)
        return cls(kind, kind._fields, types, allowed, rule)

    def accepts(self, values: Sequence[Any]) -> bool:
        """Whether every field is as declared. Types come first: only an int may be looked for in a range."""
        return tuple(map(type, values)) == self.types and all(map(contains, self.allowed, values))

    def fault(self, values: Sequence[Any]) -> str:
        """What is wrong with fields that are not accepted, as the rest of a sentence."""
        if len(values) != len(self.names):
            return f"has {len(values)} fields instead of {len(self.names)}"
        for name, value, kind, allowed in zip(self.names, values, self.types, self.allowed, strict=True):
            if type(value) is not kind or value not in allowed:
                return f"has a bad {name}: {value!a:.60}"
        return "is malformed"
