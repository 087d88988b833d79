"""Changes of values that keep their form: lists, objects and numbers as JSON and msgpack have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from tests.wire import KEYS

JUNK: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 2, 8, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32),
    *((1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63), 0.5, -0.0, 1e308, 1e-320),
    *("", "a", "\0", "\x1b[31m", "é", "\u2028", "日" * 30, "x" * 600, "[1]", "{}", "../../etc/passwd", "*:0"),
    *KEYS,
    *([], {}, [[]], [{}], [0], [1, 1], {"": None}, {"type": "text", "text": "a"}, {"type": "object"}),
)


def mutated_value(value: Any, draw: Random, junk: Sequence[Any] = JUNK) -> Any:
    """``value`` with one change at a random place: another value, one less, one twice, or two swapped."""
    inner = isinstance(value, list | dict) and len(value) > 0
    if not inner or draw.random() < 0.1:
        return _other(value, draw, junk)
    if isinstance(value, dict):
        key = draw.choice(list(value))
        match draw.randrange(8):
            case 0:
                return {name: one for name, one in value.items() if name != key}
            case 1:
                return {**value, str(draw.choice(junk)): value[key]}
        return {**value, key: mutated_value(value[key], draw, junk)}
    at = draw.randrange(len(value))
    match draw.randrange(8):
        case 0:
            return value[:at] + value[at + 1 :]
        case 1:
            return value[: at + 1] + value[at:]
        case 2:
            to = draw.randrange(len(value))
            swapped = list(value)
            swapped[at], swapped[to] = swapped[to], swapped[at]
            return swapped
    return [*value[:at], mutated_value(value[at], draw, junk), *value[at + 1 :]]


def _other(value: Any, draw: Random, junk: Sequence[Any]) -> Any:
    match value:
        case bool():
            return draw.choice((not value, draw.choice(junk)))
        case int() | float():
            return draw.choice((value + 1, value - 1, -value, value * 2, draw.choice(junk)))
        case str():
            return draw.choice((value[: draw.randrange(len(value) + 1)], value * 2, value + "\0", draw.choice(junk)))
    return draw.choice(junk)


def mutated_json(raw: bytes, draw: Random, junk: Sequence[Any] = JUNK) -> bytes | None:
    """JSON with up to three changes; None for what is no JSON."""
    try:
        value = json.loads(raw)
        for _ in range(draw.randrange(1, 4)):
            value = mutated_value(value, draw, junk)
        return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
    except (ValueError, RecursionError, OverflowError):
        return None
