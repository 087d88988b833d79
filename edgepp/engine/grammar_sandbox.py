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
from edgepp.model.text.control_tokens import is_control
from edgepp.model.text.detokenizer import BYTE_TOKEN

CPU_S = 5
"""Processor seconds that a constraint may take."""
_STACK_BYTES = 1 << 20
_MEMORY_BYTES = 2 << 30
_MAX_PATTERN = 4096
"""Characters of a pattern that is checked outside of a child process."""
_WALK_TOKENS = 24
"""Tokens for which the child follows the constraint."""
_PRIVATE = "\ue000"
_NAMED_TOKEN = re.compile(r""""(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/|(<(?!\[)[^<>\s"]+>)""")
"""A string, a comment, an expression, or (a group) the name of a token."""
_PLAIN = tuple(
    (re.compile(expression), sentence)
    for expression, sentence in (
        (r"Unimplemented keys: \[(.*)\]", r"the keyword \1 cannot be enforced"),
        (r"Unknown format: (.*)", r"the format \1 cannot be enforced"),
        (
            r"oneOf constraints are not supported.*",
            "oneOf cannot be enforced where two alternatives overlap; use anyOf",
        ),
        (r"Pointer '(.*)' does not exist.*", r"a $ref names \1, which does not exist"),
        (r"Unsatisfiable schema: Regex is empty.*", "no text has this pattern, format and length together"),
        (r"Unsatisfiable schema: anyOf is empty.*", "no value can match: a list of alternatives is empty"),
        (r"Unsatisfiable schema: ", "no value can match: "),
        (r"Failed to generate regex for \w+ range.*", "the limits of a number are too large, or leave no number"),
        (r"lookarounds not supported yet.*", "look-around and word boundaries are not supported"),
        (
            r".*forced bytes.*",
            "it demands a text that the tokens of this model cannot spell, such as the name of a control token",
        ),
        (r".*fuel exhausted.*", "it is too complex"),
    )
)
"""What llguidance says, in plain words."""
_PLACE = re.compile(r"at (\d{1,9})\(\d+\): (?:failed to compile JSON schema: )?")
_NO_EXTENSION = ("NoExtension", "NoExtensionBias")
SPACE = r" |\n[ \t]{0,32}"
"""White space between the parts of JSON: a space, or a new line and its indent. Unlimited, it may never end."""


def tokenizer(definition: str, eos: Sequence[int]) -> LLTokenizer:
    """llguidance's view of a tokenizer, from the text of its ``tokenizer.json``.

    Control tokens have other names there: llguidance tokenizes the text that a constraint demands, and would take the
    name of a control token in it for that token, which is never text. And a ``Metaspace`` decoder is written as the
    replacement that this decoder is: llguidance knows that mark of a space from replacements only.

    Raises:
        ValueError: the tokenizer is damaged, or of a kind that llguidance does not support.
    """
    try:
        return LLTokenizer(_renamed(definition), eos_token=list(eos))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return LLTokenizer(definition, eos_token=list(eos))


def _renamed(definition: str) -> str:
    form = json.loads(definition)
    names: dict[str, str] = {}
    for token in form["added_tokens"]:
        name = token["content"]
        if is_control(name, token["special"]):
            names[name] = token["content"] = _alias(name)
    model = form["model"]
    vocabulary = model["vocab"]
    had_bytes, form["decoder"] = _has_bytes(form["decoder"]), _replacing(form["decoder"])
    if _has_bytes(form["decoder"]):  # llguidance takes each name like <0x41> for a byte, and panics if it is none
        texts = vocabulary if isinstance(vocabulary, dict) else (text for text, _ in vocabulary)
        named = [text for text in texts if text.startswith("<0x") and not (had_bytes and BYTE_TOKEN.fullmatch(text))]
        names |= {text: _PRIVATE + text for text in named}
        if named and "merges" in model:
            pairs = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
            model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): token for text, token in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return json.dumps(form)


def _replacing(decoder: dict[str, Any] | None) -> dict[str, Any] | None:
    """A decoder of the same tokens' text, with a replacement in place of ``Metaspace``."""
    chain = [] if decoder is None else decoder.get("decoders", [decoder])
    marks = [one["replacement"] for one in chain if one["type"] == "Metaspace"]
    if not marks:
        return decoder
    replacement = {"type": "Replace", "pattern": {"String": marks[0]}, "content": " "}
    return {"type": "Sequence", "decoders": [replacement, {"type": "ByteFallback"}, {"type": "Fuse"}]}


def _has_bytes(decoder: dict[str, Any] | None) -> bool:
    """Whether tokens named like ``<0x41>`` stand for bytes."""
    return "ByteFallback" in json.dumps(decoder)


def _alias(name: str) -> str:
    """The name of a control token for llguidance, which no text is expected to hold."""
    return name[:-1] + _PRIVATE + name[-1:]


def _with_aliases(grammar: str) -> str:
    """A Lark grammar with the aliases of the control tokens that its rules name; those in texts stay."""
    return _NAMED_TOKEN.sub(lambda found: _alias(found[1]) if found[1] else found[0], grammar)


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


def pattern_fault(pattern: str) -> str:
    """Why a schema cannot have ``pattern`` for a string; empty if it can. Cheap, whatever the pattern is."""
    if len(pattern) > _MAX_PATTERN:
        return f"it has more than {_MAX_PATTERN} characters"
    if not pattern.isascii() and any("\ud800" <= character <= "\udfff" for character in pattern):
        return "it is not Unicode text"
    schema = json.dumps({"type": "string", "pattern": pattern})
    error = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
    return complaint(error) if error else ""


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
        return f"{where}: {_plain((errors or [lines[0][place.end() :]])[0])}"[:200]
    return _plain((errors or lines)[0])[:200]


def _plain(error: str) -> str:
    error = error.replace(_PRIVATE, "")
    for expression, sentence in _PLAIN:
        if found := expression.match(error):
            return found.expand(sentence) + error[found.end() :]
    return error


def _grammar(kind: str, text: str) -> str:
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(_with_aliases(text))
    schema = text if kind == "json_schema" else '{"type": "object"}'
    try:
        parsed = json.loads(
            schema
        )  # llguidance pastes the text into a grammar, which an unbalanced bracket would escape
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(parsed, dict):
        raise ValueError("it must be a JSON object")
    return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": SPACE})


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
