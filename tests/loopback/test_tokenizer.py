"""Text is encoded as mlx-lm's generate encodes it, and decoding gives the same text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp.errors import ModelError
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.text.tokenizer import Tokenizer
from tests.builders.checkpoints import Checkpoints


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
    assert tokenizer.chat(messages) == tokenizer.encode(text)


def test_a_model_without_a_template_says_so(folder: Path, tmp_path: Path) -> None:
    bare = Tokenizer.load(change(folder, tmp_path / "bare", chat_template=None))
    with pytest.raises(ModelError, match="no chat template") as caught:
        bare.chat([{"role": "user", "content": "Hi"}])
    assert caught.value.hint
    assert bare.encode("Hi")


def test_a_template_that_refuses_says_why(folder: Path, tmp_path: Path) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    strict = Tokenizer.load(change(folder, tmp_path / "strict", chat_template=template))
    with pytest.raises(ModelError, match="roles must alternate"):
        strict.chat([{"role": "user", "content": "Hi"}])


def test_a_template_may_not_leave_its_sandbox(folder: Path, tmp_path: Path) -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    hostile = Tokenizer.load(change(folder, tmp_path / "hostile", chat_template=template))
    with pytest.raises(ModelError, match="unsafe"):
        hostile.chat([{"role": "user", "content": "Hi"}])


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
    assert tokenizer.chat([{"role": "user", "content": "a"}])[:2] != [1, 1]


def test_a_copied_tokenizer_is_the_same(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    copy = make_checkpoint(tmp_path / "copy", replace(TINY, layers=1), tokenizer=folder)
    assert Tokenizer.load(copy).encode("Hi 12") == tokenizer.encode("Hi 12")
