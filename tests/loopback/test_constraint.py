from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.engine import constrained_decoding as constraints
from edgepp.engine.constrained_decoding import ConstraintCompiler, Matcher
from edgepp.engine.grammar_sandbox import complaint
from edgepp.engine.request import (
    MAX_CONSTRAINT_BYTES,
    Constraint,
    ConstraintKind,
    GenerateOptions,
    SamplingOptions,
)
from edgepp.engine.sampling import Sampler
from edgepp.errors import EdgeppError, ModelError, Overloaded, UsageError
from edgepp.model.fetch import fetch
from edgepp.model.text.control_tokens import grammar_literal
from edgepp.model.text.tokenizer import Tokenizer
from tests.waiting import PATIENCE_S, eventually

VOCABULARY = 49_152
EOS = 2
SEEDS = range(20)


@pytest.fixture(autouse=True)
def time_of_processors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a trial end by what it computes, and not by what else the machine does."""
    monkeypatch.setattr(constraints, "_TRIAL_S", PATIENCE_S)


@pytest.fixture(scope="module")
def definition() -> str:
    return (fetch("smollm2-135m") / "tokenizer.json").read_text()


@pytest.fixture(scope="module")
def compiler(definition: str) -> ConstraintCompiler:
    return ConstraintCompiler(definition, {EOS})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(fetch("smollm2-135m"))


@lru_cache(maxsize=1)
def _closing() -> list[int]:
    tokenizer = Tokenizer.load(fetch("smollm2-135m"))
    return tokenizer.encode('"}]', special=False) + [tokenizer.encode(one, special=False)[0] for one in '"}]']


def _random_answer(
    matcher: Matcher, tokenizer: Tokenizer, seed: int, *, limit: int = 400, vocabulary: int = VOCABULARY
) -> str:
    """The text of a random model under a constraint; past half of the limit, closing brackets become likelier."""
    draw = np.random.default_rng(seed)
    closing = _closing()
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed), matcher)
    tokens: list[int] = []
    while not sampler.done:
        assert len(tokens) < limit
        logits = (draw.standard_normal(vocabulary) * 2).astype(np.float32)
        if len(tokens) > limit // 2:
            logits[[*closing, EOS]] += 30
        token = sampler(logits, ()).token
        if token in tokenizer.eos_ids:
            break
        tokens.append(token)
    detokenizer = tokenizer.detokenizer()
    return "".join([*map(detokenizer.add, tokens), detokenizer.finish()])


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether ``value`` is valid, by the part of JSON schema that the schemas below use."""
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(_fits(value, one) for one in schema["anyOf"])
    match schema["type"]:
        case "object":
            known = schema["properties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= set(value) <= set(known)
                and all(_fits(item, known[name]) for name, item in value.items())
            )
        case "array":
            inside = schema["minItems"] <= len(value) <= schema["maxItems"]
            return isinstance(value, list) and inside and all(_fits(item, schema["items"]) for item in value)
        case "string":
            long_enough = isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema["maxLength"]
            return long_enough and re.search(schema.get("pattern", ""), value) is not None
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
    raise AssertionError(schema)


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT = {"type": "string", "maxLength": 30}
SCHEMAS = {
    "flat": _object(["name", "age"], name=TEXT, age={"type": "integer", "minimum": -5, "maximum": 120}),
    "optional": _object([], a={"type": "boolean"}, b={"type": "null"}, c=TEXT),
    "nested": _object(["list"], list={"type": "array", "minItems": 1, "maxItems": 3, "items": _object(["x"], x=TEXT)}),
    "enum": {"enum": ["Zürich", "日本", '"quoted"', 3, None, "\n"]},
    "either": {"anyOf": [{"type": "integer", "minimum": 10, "maximum": 99}, {"type": "string", "maxLength": 4}]},
    "unicode": _object(["größe", "名"], größe={"type": "boolean"}, 名={"enum": ["🙂", "é"]}),
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$", "maxLength": 8},
}

REGEXES = [
    r"[a-z]{1,20}",
    r"(yes|no|maybe)( indeed){0,3}\.",
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    r"[αβγ]{2,6} → (日本|中国)🙂?",
    r'say "(\\.|[^"\\]){0,40}"/[|]',
    r"(a|b)*a(a|b){3}c",
]

SUMS = """
start: sum
sum: term (("+" | "-") term){0,5}
term: NUMBER | "(" NUMBER ("*" NUMBER){1,3} ")"
NUMBER: /[1-9][0-9]{0,3}/
"""


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_validates(name: str, compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    constraint = Constraint("json_schema", json.dumps(SCHEMAS[name]))
    for seed in SEEDS:
        text = _random_answer(compiler.compile(constraint), tokenizer, seed)
        assert _fits(json.loads(text), SCHEMAS[name]), text


def test_any_json_is_an_object(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    for seed in SEEDS:
        text = _random_answer(compiler.compile(Constraint("json")), tokenizer, seed, limit=120)
        assert isinstance(json.loads(text), dict), text


@pytest.mark.parametrize("regex", REGEXES)
def test_every_answer_matches_its_expression(regex: str, compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    for seed in SEEDS:
        text = _random_answer(compiler.compile(Constraint("regex", regex)), tokenizer, seed)
        assert re.fullmatch(regex, text, re.DOTALL), text


def test_every_answer_is_in_its_grammar(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    number = r"[1-9][0-9]{0,3}"
    term = rf"({number}|\({number}(\*{number}){{1,3}}\))"
    for seed in SEEDS:
        text = _random_answer(compiler.compile(Constraint("grammar", SUMS)), tokenizer, seed)
        assert re.fullmatch(rf"{term}([+-]{term}){{0,5}}", text), text


def _allowed(matcher: Matcher, vocabulary: int = VOCABULARY) -> list[int]:
    masked = matcher.mask(np.zeros(vocabulary, np.float32))
    return [int(one) for one in np.flatnonzero(masked > -np.inf)]


SPECIAL = {
    "<|python_tag|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "[TOOL_CALLS]": True,
    "<|eom_id|>": True,
}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tokenizer of SmolLM2 with the special tokens of models that call tools."""
    source, folder = fetch("smollm2-135m"), tmp_path_factory.mktemp("agent")
    (folder / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    form = json.loads((source / "tokenizer.json").read_text())
    form["added_tokens"] += [
        form["added_tokens"][0] | {"id": VOCABULARY + place, "content": name, "special": special}
        for place, (name, special) in enumerate(SPECIAL.items())
    ]
    (folder / "tokenizer.json").write_text(json.dumps(form))
    return Tokenizer.load(folder)


ARGUMENTS = """
json: "{" "\\"a\\": " NUMBER "}"
NUMBER: /[1-9][0-9]{0,3}/
TEXT: /(.|\\n){1,20}/
seven: %json {"const": {"a": 7}, "x-guidance": {"whitespace_flexible": false}}
"""


@pytest.mark.parametrize(
    ("rule", "pattern"),
    [
        ("<|python_tag|> json", r"<\|python_tag\|>{J}"),
        ("<tool_call> json </tool_call>", "<tool_call>{J}</tool_call>"),
        ("(M<tool_call> json M</tool_call>){1,3}", "(<tool_call>{J}</tool_call>){1,3}"),
        ('M[TOOL_CALLS] "[" json ("," json)? "]"', r"\[TOOL_CALLS\]\[{J}(,{J})?\]"),
        ("TEXT M<|python_tag|> json", r"(?s:.{1,20})<\|python_tag\|>{J}"),
        ("M<function= json", "<function={J}"),
        ("(M<tool_call> seven M</tool_call>)*", r'(<tool_call>\{"a":7\}</tool_call>)*'),
    ],
)
def test_special_tokens_in_a_grammar(agent: Tokenizer, rule: str, pattern: str) -> None:
    """``M`` stands for ``grammar_literal`` of what follows."""
    compiler = ConstraintCompiler(agent.to_json(), agent.eos_ids)
    written = re.sub(r"M([\[<][^ ]+?[\]>=])", lambda found: grammar_literal(found[1], agent.control_tokens), rule)
    constraint = Constraint("grammar", f"start: {written}\n{ARGUMENTS}")
    for seed in SEEDS:
        text = _random_answer(compiler.compile(constraint), agent, seed, vocabulary=VOCABULARY + len(SPECIAL))
        assert re.fullmatch(pattern.replace("{J}", r'\{"a": [1-9][0-9]{0,3}\}'), text), text


def test_a_special_token_is_one_token_and_never_text(agent: Tokenizer) -> None:
    compiler, vocabulary = ConstraintCompiler(agent.to_json(), agent.eos_ids), VOCABULARY + len(SPECIAL)
    tag = agent.control_tokens["<|python_tag|>"]
    assert _allowed(compiler.compile(Constraint("grammar", "start: <|python_tag|>")), vocabulary) == [tag]
    free = _allowed(compiler.compile(Constraint("regex", "(?s:.*)")), vocabulary)
    assert [token for token in free if token >= VOCABULARY] == [agent.control_tokens["<|eom_id|>"]]
    with pytest.raises(UsageError, match="the grammar cannot be used"):
        compiler.compile(Constraint("grammar", "start: <|no_such_token|>"))


def test_an_answer_ends_only_where_it_may(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    matcher = compiler.compile(Constraint("regex", "(ab){2}c*"))
    for token in tokenizer.encode("ab", special=False):
        assert EOS not in _allowed(matcher)
        matcher.advance(token)
    assert EOS not in _allowed(matcher)
    for token in tokenizer.encode("ab", special=False):
        matcher.advance(token)
    assert EOS in _allowed(matcher)
    assert not matcher.done
    matcher.advance(EOS)
    assert matcher.done


def test_a_complete_answer_ends_without_an_end_token(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    matcher = compiler.compile(Constraint("regex", "hello world"))
    forced = matcher.forced()
    assert forced == tokenizer.encode("hello world", special=False)
    for token in forced:
        assert _allowed(matcher) == [token]
        assert not matcher.done
        matcher.advance(token)
    assert matcher.done
    assert _allowed(matcher) == [EOS]


def test_no_special_token_but_the_end_is_ever_allowed(compiler: ConstraintCompiler) -> None:
    allowed = _allowed(compiler.compile(Constraint("regex", r"(?s:.*)")))
    assert [token for token in allowed if token < 17] == [EOS]


def test_rows_beyond_the_tokenizer_are_never_allowed(compiler: ConstraintCompiler) -> None:
    matcher = compiler.compile(Constraint("regex", "[a-z]+"))
    assert _allowed(matcher, VOCABULARY + 500) == _allowed(matcher)
    assert _allowed(matcher, 300) == [token for token in _allowed(matcher) if token < 300]


def test_a_mask_leaves_its_logits_alone(compiler: ConstraintCompiler) -> None:
    logits: npt.NDArray[np.float32] = np.random.default_rng(0).standard_normal(VOCABULARY).astype(np.float32)
    logits.flags.writeable = False
    matcher = compiler.compile(Constraint("regex", "[a-z]+"))
    masked, allowed = matcher.mask(logits), _allowed(matcher)
    np.testing.assert_array_equal(masked[allowed], logits[allowed])
    assert 0 < len(allowed) < VOCABULARY


def test_a_token_that_was_not_allowed_is_refused(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    matcher = compiler.compile(Constraint("regex", "[a-z]+"))
    with pytest.raises(UsageError, match="cannot be followed further"):
        matcher.advance(tokenizer.encode("7", special=False)[0])


def test_answers_to_one_constraint_do_not_touch_each_other(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    constraint = Constraint("json_schema", json.dumps(SCHEMAS["nested"]))
    alone = [_random_answer(compiler.compile(constraint), tokenizer, seed) for seed in range(4)]
    beside: dict[int, str] = {}

    def answer(seed: int) -> None:
        beside[seed] = _random_answer(compiler.compile(constraint), tokenizer, seed)

    threads = [threading.Thread(target=answer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [beside[seed] for seed in range(4)] == alone


def test_logprobs_are_the_models_own_also_where_the_constraint_decides(compiler: ConstraintCompiler) -> None:
    logits = np.random.default_rng(1).standard_normal(VOCABULARY).astype(np.float32)
    options = SamplingOptions(logprobs=3)
    held = Sampler(options, compiler.compile(Constraint("regex", "x+")))(logits, ())
    free = Sampler(options)(logits, ())
    assert held.top == free.top
    assert held.token != free.token
    assert held.logprob is not None
    assert free.logprob is not None
    assert -np.inf < held.logprob < free.logprob


def test_a_sampler_kept_over_a_preemption_goes_on(compiler: ConstraintCompiler) -> None:
    constraint, options = Constraint("regex", "[a-z ]{200}"), SamplingOptions(0.9, frequency_penalty=1.0, seed=5)
    logits = [np.random.default_rng(seed).standard_normal(VOCABULARY).astype(np.float32) for seed in range(12)]
    through, kept = (Sampler(options, compiler.compile(constraint)) for _ in range(2))
    straight = [through(row, ()).token for row in logits]
    before = [kept(row, ()).token for row in logits[:5]]
    Sampler(options, compiler.compile(constraint))(logits[0], ())
    assert before + [kept(row, ()).token for row in logits[5:]] == straight


def _nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


def _chain(length: int, link: Callable[[int], str], name: str = "r") -> str:
    return f"start: {name}0\n" + "\n".join(link(index) for index in range(length)) + f'\n{name}{length}: "y"'


REFUSED: dict[str, tuple[ConstraintKind, str, str]] = {
    "not JSON": ("json_schema", "{", "Expecting property name"),
    "no object": ("json_schema", "[]", "must be a JSON object"),
    "gets out": ("json_schema", '{}}],"x":[{"y":{}', "Extra data"),
    "no such type": ("json_schema", '{"type":"strin"}', "Invalid type: strin"),
    "not known": ("json_schema", '{"if":{}}', "the keyword .if. cannot be enforced"),
    "unsatisfiable": ("json_schema", '{"type":"string","minLength":5,"maxLength":2}', "greater than maxLength"),
    "itself": ("json_schema", '{"$ref":"#"}', "allows no text"),
    "fetches": ("json_schema", '{"$ref":"http://127.0.0.1:9/x.json"}', "does not fetch"),
    "deep": ("json_schema", _nested(2000), "nested too deeply"),
    "product": (
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [_object([], **{f"k{i}{j}": TEXT}) for j in range(6)]} for i in range(12)]}),
        "too large",
    ),
    "chain of references": (
        "json_schema",
        json.dumps(
            {
                "$defs": {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(1000)}
                | {"d1000": {}}
            }
            | {"$ref": "#/$defs/d0"}
        ),
        "nested too deeply",
    ),
    "factors": ("json_schema", '{"type":"integer","multipleOf":982451653}', "too complex"),
    "unclosed": ("regex", "(", "unclosed group"),
    "look-ahead": ("regex", "(?=a)b", "look-around"),
    "back-reference": ("regex", r"(a)\1", "backreferences are not supported"),
    "deep groups": ("regex", "(" * 30_000 + "a" + ")" * 30_000, "nested parentheses"),
    "no start": ("grammar", "stert: ", "no start rule"),
    "left for ever": ("grammar", "start: start", "allows no text"),
    "deep brackets": ("grammar", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000, "too deeply nested"),
    "chain of rules": ("grammar", _chain(4000, lambda i: f"r{i}: r{i + 1}"), "nested too deeply"),
    "chain of terminals": ("grammar", _chain(4000, lambda i: f"R{i}: ~R{i + 1}", "R"), "nested too deeply"),
    "ambiguous": ("grammar", "start: s\ns: " + " ".join(["t"] * 3000) + '\nt: s | "a" | ""', "Too many items"),
    "doubling": ("grammar", _chain(60, lambda i: f"r{i}: r{i + 1} r{i + 1}"), "Too many items"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_invalid_or_expensive_constraint_is_refused(name: str, compiler: ConstraintCompiler) -> None:
    kind, text, reason = REFUSED[name]
    with pytest.raises(UsageError, match=reason) as raised:
        compiler.compile(Constraint(kind, text))
    assert str(raised.value).startswith(f"the {kind} cannot be used: ")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_child_process_that_cannot_start_is_named(
    compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(constraints.subprocess, "run", full)
    with pytest.raises(EdgeppError, match=r"no process can be started .* Too many open files"):
        compiler.compile(Constraint("regex", "never seen before"))


def test_compiling_ends_at_its_time_limit(compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "_TRIAL_S", 1.0)
    grammar = "start: A\nA: /(?s:.*a.{15}.*)/ & /(.*b.{15})/ & ~/(.*c.{15}.*)/"
    with pytest.raises(UsageError, match="longer than 1 s"):
        compiler.compile(Constraint("grammar", grammar))


def test_a_constraint_that_becomes_too_complex_ends_its_own_answer(compiler: ConstraintCompiler) -> None:
    late = "start: /[a-z]{600}/ s\ns: " + " ".join(["t"] * 1500) + '\nt: s | "a" | ""'
    matcher = compiler.compile(Constraint("grammar", late))

    def follow() -> None:
        for _ in range(601):
            matcher.advance(_allowed(matcher)[-1])

    with pytest.raises(UsageError, match=r"cannot be followed further: .*(items|Too many)"):
        follow()


def test_a_tokenizer_of_another_kind_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="cannot be held to a constraint"):
        ConstraintCompiler("{}", {EOS})


def test_a_limited_number_of_compiled_constraints_is_kept(
    compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraints, "_MAX_COMPILED", 2)
    for text in ("a", "b", "c"):
        compiler.compile(Constraint("regex", text))
    monkeypatch.setattr(compiler, "_complaint", lambda constraint: pytest.fail(f"{constraint} was tried again"))
    compiler.compile(Constraint("regex", "b"))
    compiler.compile(Constraint("regex", "c"))
    with pytest.raises(pytest.fail.Exception):
        compiler.compile(Constraint("regex", "a"))


class Trials:
    """Trials of a compiler that wait until they are let through, and the order in which they began."""

    def __init__(self, compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch, complaint: str) -> None:
        self.begun: list[str] = []
        self.go = threading.Event()
        self._complaint = complaint
        monkeypatch.setattr(compiler, "_complaint", self._try)

    def _try(self, constraint: Constraint) -> str:
        self.begun.append(constraint.text)
        self.go.wait(PATIENCE_S)
        return self._complaint


def test_trials_go_by_the_turns_of_owners(compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Trials(compiler, monkeypatch, "too slow")
    with ThreadPoolExecutor(20) as threads:
        hostile = [threads.submit(compiler.compile, Constraint("regex", f"slow{n}"), "a") for n in range(9)]
        eventually(
            "one trial runs and eight wait", lambda: len(trials.begun) == 1 and compiler._turns.num_waiting("a") == 8
        )
        with pytest.raises(Overloaded):
            compiler.compile(Constraint("regex", "slow one more"), "a")
        compiler.compile(Constraint("json"), "b")
        fine = threads.submit(compiler.compile, Constraint("regex", "fine"), "b")
        eventually(
            "the trial of another owner", lambda: trials.begun[1:] == ["fine"]
        )  # beside the first, before the others
        trials.go.set()
        assert {type(done.exception()) for done in [*hostile, fine]} == {UsageError}


def test_a_refused_constraint_is_not_tried_again(compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Trials(compiler, monkeypatch, "too slow for us")
    trials.go.set()
    for owner in ("a", "a", "b"):
        with pytest.raises(UsageError, match="the regex cannot be used: too slow for us"):
            compiler.compile(Constraint("regex", "hostile"), owner)
    assert trials.begun == ["hostile"]


def test_requests_of_one_owner_with_one_constraint_wait_for_one_trial(
    compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(compiler, monkeypatch, "")
    with ThreadPoolExecutor(20) as threads:
        made = [threads.submit(compiler.compile, Constraint("regex", "twenty choices"), "a") for _ in range(20)]
        eventually("the trial", lambda: trials.begun)
        trials.go.set()
        assert len({id(one.result()) for one in made}) == 20
    assert trials.begun == ["twenty choices"]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("regex", "", "is empty"),
        ("json", "{}", "takes no text"),
        ("shell", "ls", "a constraint is one of"),
        ("regex", "é" * (MAX_CONSTRAINT_BYTES // 2 + 1), str(MAX_CONSTRAINT_BYTES + 2)),
        ("regex", "\ud800", "surrogate"),
    ],
)
def test_a_constraint_is_bounded(kind: Any, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Constraint(kind, text)


def test_a_constrained_answer_cannot_ignore_its_end() -> None:
    with pytest.raises(UsageError, match="ends where the constraint does"):
        GenerateOptions(ignore_eos=True, constraint=Constraint("json"))


@given(st.text(max_size=40))
def test_a_complaint_is_one_short_line(text: str) -> None:
    said = complaint(text)
    assert len(said.splitlines()) <= 1
    assert len(said) <= 200
