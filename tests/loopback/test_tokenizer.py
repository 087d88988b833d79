"""Text is encoded as mlx-lm's generate encodes it, and decoding gives the same text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp.errors import ContextExceeded, ModelError, PromptRefused, UsageError
from edgepp.fair_turns import FairTurns
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.text.client import TextClient
from edgepp.model.text.control_tokens import grammar_literal
from edgepp.model.text.conversation import Conversation
from edgepp.model.text.tokenizer import Tokenizer
from tests.builders.checkpoints import Checkpoints
from tests.waiting import eventually


@pytest.fixture(scope="module")
def folder(checkpoints: Checkpoints) -> Path:
    return checkpoints(TINY)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture
def tokenizer(loaded: Tokenizer) -> Iterator[Tokenizer]:
    yield loaded
    loaded.close()


def test_a_framework_that_is_installed_is_not_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers imports PyTorch where it is installed, and PyTorch alone takes more memory than the limit."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('failed to map segment')\n")
    (tmp_path / "torch-2.11.0.dist-info").mkdir()
    (tmp_path / "torch-2.11.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    client = TextClient(folder.name)
    try:
        assert client.open(folder, 1 << 20)
    finally:
        client.close()


def test_a_folder_is_read_by_the_slow_libraries_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Tokenizer.load(folder)

    def refuse(*_: object) -> None:
        raise AssertionError("the folder was read again")

    monkeypatch.setattr(TextClient, "open", refuse)
    again = Tokenizer.load(folder)
    try:
        assert (again.eos_ids, again.template, again.vocabulary()) == (
            first.eos_ids,
            first.template,
            first.vocabulary(),
        )
        assert again.encode("hello") == first.encode("hello")
    finally:
        first.close()
        again.close()


def change(folder: Path, target: Path, **values: Any) -> Path:
    """A copy of the tokenizer with other settings; None drops one."""
    target.mkdir()
    for path in folder.glob("*.json"):
        (target / path.name).write_bytes(path.read_bytes())
    settings = {**json.loads((folder / "tokenizer_config.json").read_text()), **values}
    kept = {key: value for key, value in settings.items() if value is not None}
    (target / "tokenizer_config.json").write_text(json.dumps(kept))
    return target


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_decoding_gives_the_same_text_in_complete_characters(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.add(token) for token in tokenizer.encode(text, special=False)]
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
    assert "".join(pieces) + detokenizer.finish() == text


def test_an_incomplete_character_is_held_back(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("aé", special=False)
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.add(token) for token in tokens[:-1]] == ["a", ""]
    assert detokenizer.finish() == "\ufffd"


def test_two_sequences_do_not_mix(tokenizer: Tokenizer) -> None:
    one, two = tokenizer.detokenizer(), tokenizer.detokenizer()
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    assert (one.add(a), two.add(b), one.add(b), two.add(a)) == ("a", "b", "b", "a")


def test_every_id_of_the_vocabulary_decodes(tokenizer: Tokenizer) -> None:
    detokenizer = tokenizer.detokenizer()
    for token in (*range(TINY.vocabulary), TINY.vocabulary, TINY.vocabulary + 1000):
        detokenizer.add(token)
    detokenizer.finish()
    assert tokenizer.detokenizer().add(TINY.vocabulary) == ""


def test_a_conversation_ends_where_the_answer_begins(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode_prompt(Conversation(messages)).ids == tokenizer.encode(text)


def test_a_model_without_a_template_says_so(folder: Path, tmp_path: Path) -> None:
    bare = Tokenizer.load(change(folder, tmp_path / "bare", chat_template=None))
    with pytest.raises(ModelError, match="no chat template") as caught:
        bare.encode_prompt(Conversation.of("Hi"))
    assert caught.value.hint
    assert bare.encode("Hi")


def test_a_template_that_refuses_says_why(folder: Path, tmp_path: Path) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    strict = Tokenizer.load(change(folder, tmp_path / "strict", chat_template=template))
    with pytest.raises(PromptRefused, match="roles must alternate"):
        strict.encode_prompt(Conversation.of("Hi"))


@pytest.mark.parametrize(
    ("template", "error", "reason"),
    [
        ("{{ 'a' + messages[1].content }}", PromptRefused, "no element 1"),
        ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", PromptRefused, "has no attribute 'content'"),
        ("{{ messages[7].content.x }}", ModelError, "no element 7"),
        ("{{ 1 / 0 }}", ModelError, "division by zero"),
        ("{% if %}", ModelError, "Expected an expression"),
    ],
)
def test_a_template_refuses_what_it_cannot_take_and_is_broken_if_it_takes_nothing(
    folder: Path, tmp_path: Path, template: str, error: type[Exception], reason: str
) -> None:
    if "messages[1]" in template:
        template = (
            "{% if messages | length == 1 and messages[0].content == 'hi' %}ok{% else %}" + template + "{% endif %}"
        )
    made = Tokenizer.load(change(folder, tmp_path / "made", chat_template=template))
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    with pytest.raises(error, match=reason):
        made.encode_prompt(Conversation([{"role": "assistant", "content": None, "tool_calls": [call]}]))
    made.close()


def test_a_prompt_that_does_not_fit_says_how_long_it_is(tokenizer: Tokenizer) -> None:
    for prompt in ("a" * 20, Conversation.of("a" * 20), (5,) * 20):
        length = len(tokenizer.encode_prompt(prompt).ids)
        assert len(tokenizer.encode_prompt(prompt, length + 1).ids) == length
        with pytest.raises(ContextExceeded, match=f"a prompt of {length} tokens") as caught:
            tokenizer.encode_prompt(prompt, length)
        assert (caught.value.prompt_tokens, caught.value.context) == (length, length)


CONTEXT = 64
LARGE = 4_000_000


@pytest.mark.parametrize("character", ["\n", " ", "a", "é"])
@pytest.mark.parametrize("answered", [True, False], ids=["an answer", "a count"])
def test_text_that_cannot_fit_never_reaches_the_process(
    character: str, answered: bool, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextClient, "_call", lambda *_: pytest.fail("the text process was called"))
    text = character * LARGE
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": [text]}}}
    tool = {"type": "function", "function": {"name": "f", "description": text}}
    conversations = [
        Conversation.of(text),
        Conversation([{"role": "user", "content": character * (LARGE // 100)}] * 100),
        Conversation([{"role": "assistant", "content": "", "tool_calls": [call]}]),
        Conversation([{"role": "user", "content": "Hi"}], tools=[tool]),
    ]
    for prompt in (text, *conversations):
        with pytest.raises(ContextExceeded, match="at least"):
            tokenizer.encode_prompt(prompt, CONTEXT, answered=answered)
    with pytest.raises(ContextExceeded, match=f"{LARGE} tokens"):
        tokenizer.encode_prompt((5,) * LARGE, CONTEXT, answered=answered)


def test_a_count_may_be_beyond_the_context(tokenizer: Tokenizer) -> None:
    text = "a é " * (CONTEXT // 2)
    assert len(tokenizer.encode_prompt(text, CONTEXT, answered=False).ids) > CONTEXT


def test_no_text_waits_behind_a_long_one(tokenizer: Tokenizer) -> None:
    with tokenizer._long_client._turns.turn("other"):
        assert tokenizer.encode_prompt("Hi", CONTEXT, "owner").ids
    assert tokenizer._long_client._process is None
    assert tokenizer.encode("a" * 200_000, special=False)
    assert tokenizer._long_client._process is not None


def test_the_process_serves_owners_in_turns(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[str] = []
    client = tokenizer._client
    monkeypatch.setattr(client, "_call", lambda request, *_: served.append(request.get("text", "")) or [1])
    turns: FairTurns = client._turns
    with ThreadPoolExecutor(9) as threads, turns.turn("holder"):
        for number, (owner, text) in enumerate([*[("many", "m" * 50_000)] * 4, ("one", "o"), ("two", "t")]):
            threads.submit(tokenizer.encode_prompt, text, None, owner)
            eventually("waits", lambda number=number: len(turns._waiting) > number)
    assert [text[0] for text in served if text] == list("motmmm")


def test_token_ids_are_sent_unchanged_if_they_are_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_prompt((1, 5, 7)).ids == [1, 5, 7]
    for ids in ((), (1, TINY.vocabulary), (-1,), (True,), ("1",), (1.5,)):
        with pytest.raises(UsageError):
            tokenizer.encode_prompt(ids)  # type: ignore[arg-type]


def test_decoding_gives_special_tokens_too(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>user\nhé<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text
    assert tokenizer.decode([]) == ""
    with pytest.raises(UsageError, match="no token of"):
        tokenizer.decode([TINY.vocabulary])


def test_each_token_has_its_own_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a é<|im_end|>", special=False)
    assert [tokenizer.bytes_of(token) for token in ids] == [b"a", b" ", b"\xc3", b"\xa9", b"<|im_end|>"]
    assert tokenizer.bytes_of(TINY.vocabulary) == b""


def test_the_opening_of_an_answer_is_what_the_template_wrote_last(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_prompt(Conversation.of("Hi")).opening == "<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode_prompt("Hi").opening == ""


def test_an_answer_continues_the_last_message(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is \n"}]
    encoded = tokenizer.encode_prompt(Conversation(messages, continues=True))
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nIt is"
    assert tokenizer.decode(encoded.ids).endswith(text)
    assert encoded.opening == ""
    with pytest.raises(UsageError, match="continue"):
        tokenizer.encode_prompt(Conversation(messages[:1], continues=True))


def test_a_template_may_not_leave_its_sandbox(folder: Path, tmp_path: Path) -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    hostile = Tokenizer.load(change(folder, tmp_path / "hostile", chat_template=template))
    with pytest.raises(ModelError, match="unsafe"):
        hostile.encode_prompt(Conversation.of("Hi"))


def test_a_tokenizer_with_code_of_its_own_is_not_run(folder: Path, tmp_path: Path) -> None:
    hostile = change(
        folder,
        tmp_path / "hostile",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
    )
    (hostile / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    try:
        Tokenizer.load(hostile)
    except ModelError as error:
        assert "cannot be read" in str(error)  # noqa: PT017 - loading a plain tokenizer instead is fine, too
    assert not (tmp_path / "ran").exists()


def test_a_missing_or_damaged_tokenizer(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no tokenizer"):
        Tokenizer.load(tmp_path)
    damaged = change(folder, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        Tokenizer.load(damaged)


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [5, 7]}, {"eos_token_id": 9}, {2, 5, 7}),
        ({"eos_token_id": 5}, {"eos_token_id": 9}, {2, 5}),
        ({}, {"eos_token_id": [9]}, {2, 9}),
        (None, {"eos_token_id": 9}, {2, 9}),
        (None, {}, {2}),
        ({"eos_token_id": None}, {}, {2}),
    ],
)
def test_the_end_tokens_of_an_answer(
    folder: Path, tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any], ends: set[int]
) -> None:
    target = change(folder, tmp_path / "m")
    (target / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if generation is not None:
        (target / "generation_config.json").write_text(json.dumps(generation))
    assert Tokenizer.load(target).eos_ids == ends


def test_a_token_that_ends_turns_ends_answers_whatever_the_settings_say(folder: Path, tmp_path: Path) -> None:
    target = change(folder, tmp_path / "m")
    form = json.loads((folder / "tokenizer.json").read_text())
    added = form["added_tokens"][2]
    names = {"<|eom_id|>": 900, "<|python_tag|>": 901}
    form["added_tokens"] += [added | {"id": token, "content": name} for name, token in names.items()]
    (target / "tokenizer.json").write_text(json.dumps(form))
    tokenizer = Tokenizer.load(target)
    assert tokenizer.eos_ids == {2, 900}
    assert tokenizer.detokenizer().add(901) == "<|python_tag|>"
    literals = [grammar_literal(name, tokenizer.control_tokens) for name in ("<|python_tag|>", '<"é\n>')]
    assert literals == ["<[901]>", '"<\\"é\\n>"']


def test_raw_text_is_encoded_as_mlx_lm_encodes_it(folder: Path, tmp_path: Path) -> None:
    """BOS is added if the tokenizer adds it and the text does not begin with it."""
    target = change(folder, tmp_path / "bos")
    content = json.loads((folder / "tokenizer.json").read_text())
    bos = {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": bos},
    }
    (target / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.load(target)
    (a,) = tokenizer.encode("a", special=False)
    assert tokenizer.encode("a") == [1, a]
    assert tokenizer.encode("<|im_start|>a") == [1, a]
    assert tokenizer.encode_prompt(Conversation.of("a")).ids[:2] != [1, 1]


def test_a_copied_tokenizer_is_the_same(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    copy = make_checkpoint(tmp_path / "copy", replace(TINY, layers=1), tokenizer=folder)
    assert Tokenizer.load(copy).encode("Hi 12") == tokenizer.encode("Hi 12")
