"""Compiles a constraint in a process with limits: ``python -m edgepp.engine.grammar_sandbox``.

llguidance bounds most of what a schema or grammar may cost, yet a grammar of 60 bytes can take minutes and gigabytes,
and a chain of a thousand references overflows the stack, which ends the process. So a new constraint is first compiled,
and followed for a few tokens, in a child process that may die of it. The child's stack is smaller than that of any
thread of edgepp, so a constraint that compiles in the child compiles safely elsewhere.
"""

from __future__ import annotations

import json
import random
import re
import sys
import threading
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from edgepp.child_process import limit_cpu, limit_memory

CPU_S = 5
"""Processor seconds that a constraint may take."""
_STACK_BYTES = 1 << 20
_MEMORY_BYTES = 2 << 30
_WALK_TOKENS = 24
"""Tokens for which the child follows the constraint."""
_PLACE = re.compile(r"at (\d{1,9})\(\d+\): (?:failed to compile JSON schema: )?")
_NO_EXTENSION = ("NoExtension", "NoExtensionBias")
_SPACE = r"[ \n\r\t]{1,40}"  # unbounded, a model can emit white space until max_tokens


def tokenizer(definition: str, eos: Sequence[int]) -> LLTokenizer:
    """llguidance's view of a tokenizer, from the text of its ``tokenizer.json``.

    Raises:
        ValueError: the tokenizer is damaged, or of a kind that llguidance does not support.
    """
    return LLTokenizer(definition, eos_token=list(eos))


def matcher(tokens: LLTokenizer, kind: str, text: str) -> LLMatcher:
    """A matcher for a constraint; if the constraint is invalid, the matcher's ``get_error`` says why.

    Raises:
        ValueError: a schema is not JSON.
    """
    limits = LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )
    return LLMatcher(tokens, _grammar(kind, text), log_level=0, limits=limits)


def complaint(error: str, grammar: str = "") -> str:
    """The most specific line of an error message of llguidance.

    If the message names a line of ``grammar`` that ends with a comment, as in ``name: %json {…} // schema of f``, the
    comment says where.
    """
    lines = [line.strip() for line in error.splitlines()] or [""]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    place = _PLACE.match(lines[0])
    rule = grammar.split("\n")[int(place[1]) - 1 : int(place[1])] if place else []
    _, comment, where = rule[0].rpartition(" // ") if rule else ("", "", "")
    if place and comment:
        return f"{where}: {(errors or [lines[0][place.end() :]])[0]}"[:200]
    return (errors or lines)[0][:200]


def _grammar(kind: str, text: str) -> str:
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(text)
    schema = text if kind == "json_schema" else '{"type": "object"}'
    try:
        parsed = json.loads(
            schema
        )  # llguidance pastes the text into a grammar, which an unbalanced bracket would escape
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(parsed, dict):
        raise ValueError("it must be a JSON object")
    return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": _SPACE})


def _complaint_about(form: dict[str, Any], definition: str) -> str:
    """What is wrong with a constraint; empty if it compiles and can be followed."""
    try:
        tried = matcher(tokenizer(definition, form["eos"]), form["kind"], form["text"])
    except ValueError as error:
        return complaint(str(error), form["text"])
    draw = random.Random(0)  # noqa: S311 - a walk, not a secret
    for _ in range(_WALK_TOKENS):
        mask = b"" if tried.is_error() else tried.compute_bitmask()
        if tried.is_error():
            reason = complaint(tried.get_error(), form["text"])
            return "it allows no text" if reason in _NO_EXTENSION else reason
        if tried.is_stopped():
            break
        place = draw.choice([index for index, byte in enumerate(mask) if byte])
        tried.consume_token(8 * place + draw.choice([bit for bit in range(8) if mask[place] >> bit & 1]))
    return ""


def _report(form: dict[str, Any], definition: str) -> None:
    print(json.dumps(_complaint_about(form, definition)))  # noqa: T201 - the parent reads it


def _main() -> None:
    limit_cpu(CPU_S)
    limit_memory(_MEMORY_BYTES)
    form = json.loads(sys.stdin.buffer.readline())
    definition = sys.stdin.buffer.read().decode()
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_report, args=(form, definition))
    thread.start()
    thread.join()


if __name__ == "__main__":
    _main()
