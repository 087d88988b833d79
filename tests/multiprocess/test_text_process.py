"""What a model brings for text runs in a process with limits: whatever it does costs one call, and is a sentence."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sentencepiece

from edgepp.errors import EdgeppError, ModelError, UsageError
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.text.client import TextClient
from edgepp.model.text.conversation import Conversation
from edgepp.model.text.tokenizer import Tokenizer
from tests.processes import children
from tests.waiting import PATIENCE_S

SAMPLE = ("cat", "dog", "house", "tree", "river", "window", "garden", "little", "people", "morning")
SAID = Conversation.of("hi")

LIMITED = pytest.mark.skipif(sys.platform != "linux", reason="no system but Linux limits a process's memory")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny", TINY)


@pytest.fixture
def client(folder: Path) -> Iterator[TextClient]:
    client = TextClient("tiny", (folder / "tokenizer.json").read_text())
    yield client
    client.close()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes too long"),
        ("{{ (10 ** (10 ** 8)) % 7 }}", "takes too long"),
        ("{% for a in range(1000000000) %}x{% endfor %}", "Range too big"),
        pytest.param("{{ 'a' * 20000000000 }}", "memory", marks=LIMITED),
        pytest.param("{{ '%9999999999d' % 1 }}", "memory", marks=LIMITED),
        ("{% for a in range(99999) %}{{ 'hello world ' * 2000 }}{% endfor %}", "more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses without end"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[7].content.x }}", "has no element 7"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{% if %}", "Expected an expression"),
        ("{% include 'x' %}", "no loader"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% set x = namespace(__init__=1) %}", "cannot have the name"),
    ],
)
def test_a_template_that_fails_is_one_sentence(client: TextClient, template: str, reason: str) -> None:
    with pytest.raises(ModelError, match="chat template of tiny") as caught:
        client.render(template, SAID, {})
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert client.render("{{ messages[0].content }}!", SAID, {}) == ("hi!", [[0, 2]])


def change(folder: Path, **parts: Any) -> Path:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))
    return folder


def replaced(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [replaced("a", "a" * 1000)] * 5}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},  # a panic
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "^(a|aa)+$"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
    ],
)
def test_a_tokenizer_that_fails_is_one_sentence(folder: Path, parts: dict[str, Any]) -> None:
    tokenizer = Tokenizer.load(change(folder, **parts))
    try:
        with pytest.raises(ModelError, match="the tokenizer of tiny cannot encode this text"):
            tokenizer.encode("a" * 60 + "!")
        with pytest.raises(ModelError, match="the tokenizer of tiny cannot encode this text"):
            tokenizer.encode_prompt(Conversation.of("a" * 60 + "!"))
    finally:
        tokenizer.close()


def test_a_definition_nested_too_deeply_is_one_sentence(folder: Path) -> None:
    opened = '{"type":"Sequence","normalizers":['
    (folder / "tokenizer.json").write_text('{"normalizer":' + opened * 100_000 + "]}" * 100_000 + "}")
    with pytest.raises(ModelError, match="the tokenizer of tiny cannot be read"):
        Tokenizer.load(folder)


def without_definition(folder: Path, **files: bytes | str) -> Path:
    """A tokenizer of other files than tokenizer.json; a ``__`` in a name stands for a dot."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def test_a_sentencepiece_model_is_converted(folder: Path) -> None:
    sentences = [f"the {word} and the {other} are here" for word in SAMPLE for other in SAMPLE]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=300, model_type="bpe", byte_fallback=True,
        minloglevel=2, num_threads=1,
    )  # fmt: skip
    tokenizer = Tokenizer.load(without_definition(folder, tokenizer__model=model.getvalue()))
    try:
        expected = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode("the cat and the dog")
        assert tokenizer.encode("the cat and the dog", special=False) == expected
    finally:
        tokenizer.close()
    assert tokenizer.eos_ids == {2}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer__model": b"\xff" * 10_000},
        {"tokenizer__model": b""},
        {"vocab__json": "[" * 100_000 + "]" * 100_000, "merges__txt": "a b\n"},
        {"vocab__json": "{}", "merges__txt": "\x00"},
        {"vocab__json": '{"a": 4294967296}', "merges__txt": "a a\n"},
        {"tokenizer__model": b"\x0a\x05\x0a\x03abc", "tokenizer_config__json": "[" + "[],[[]]," * 14_000_000 + "[]]"},
        {"tokenizer__model": b"\x0a\x05\x0a\x03abc", "tokenizer_config__json": "[1]"},
    ],
    ids=["garbage", "empty", "deep vocabulary", "no vocabulary", "large id", "brackets", "list"],
)
def test_a_hostile_tokenizer_costs_its_load_a_sentence(folder: Path, files: dict[str, bytes | str]) -> None:
    """Whatever it is, this process takes none of it: neither an exception of a library nor its memory."""
    process = psutil.Process()
    before = process.memory_info().rss
    with pytest.raises(ModelError, match="the tokenizer of tiny cannot be read: ") as caught:
        Tokenizer.load(without_definition(folder, **files))
    assert "\n" not in str(caught.value)
    assert "tokenizer.json" in caught.value.hint
    assert process.memory_info().rss < before + (64 << 20)
    assert not children()


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_half_a_surrogate_pair_is_a_usage_error(folder: Path, text: str) -> None:
    tokenizer = Tokenizer.load(folder)
    try:
        with pytest.raises(UsageError, match="surrogate"):
            tokenizer.encode(text)
        for message in ({"role": "user", "content": text}, {"role": text, "content": ""}):
            with pytest.raises(UsageError, match="surrogate"):
                tokenizer.encode_prompt(Conversation([message]))
    finally:
        tokenizer.close()


def test_ids_with_gaps_work(folder: Path) -> None:
    """In the vocabulary, and before an added token whose id the library would change."""
    form = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = {text: token + 5 * (token >= 100) for text, token in form["model"]["vocab"].items()}
    added = [*form["added_tokens"], {**form["added_tokens"][2], "content": "<x>", "id": 900}]
    tokenizer = Tokenizer.load(change(folder, model=form["model"] | {"vocab": vocabulary}, added_tokens=added))
    try:
        assert tokenizer.vocabulary()["<x>"] == 900
        assert tokenizer.encode("<x>") == [900]
        assert 900 not in tokenizer.encode_prompt(Conversation.of("<x>")).ids
        ids = tokenizer.encode("wörld<x>")
        assert max(ids[:-1]) > 105
        detokenizer = tokenizer.detokenizer()
        assert "".join([*map(detokenizer.add, ids), detokenizer.finish()]) == "wörld<x>"
        assert [detokenizer.add(token) for token in (102, 899, 1 << 40)] == ["", "", ""]
    finally:
        tokenizer.close()


def test_a_gap_in_a_list_of_pieces_works(folder: Path) -> None:
    """Pieces of a Unigram model have their places as ids."""
    end = json.loads((folder / "tokenizer.json").read_text())["added_tokens"][2]
    added = [end | {"id": 0, "content": "<unk>"}, end | {"id": 9, "content": "<|im_start|>"}, end | {"id": 12}]
    model = {
        "type": "Unigram",
        "unk_id": 0,
        "vocab": [["<unk>", 0.0], ["a", -3.0], ["▁a", -2.5]],
        "byte_fallback": False,
    }
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer = Tokenizer.load(
        change(folder, model=model, added_tokens=added, pre_tokenizer=metaspace, decoder=metaspace)
    )
    try:
        assert tokenizer.encode("a a<|im_end|>") == [2, 2, 12]
        assert tokenizer.encode_prompt(Conversation.of("a<|im_end|>")).ids.count(12) == 1
        assert 12 in tokenizer.eos_ids
        detokenizer = tokenizer.detokenizer()
        assert [detokenizer.add(token) for token in (2, 1, 10, 12)] == [" a", "a", "", "<|im_end|>"]
    finally:
        tokenizer.close()


@pytest.mark.parametrize("name", ["chat_template.jinja", "special_tokens_map.json", "vocab.txt"])
def test_a_pipe_beside_a_tokenizer_is_not_read(folder: Path, name: str) -> None:
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match="is a named pipe"):
        Tokenizer.load(folder)


def test_several_threads_get_their_own_ids(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    tokenizer.start()
    texts = [chr(ord("a") + place) * 50 for place in range(12)]
    found: dict[str, list[int]] = {}

    def ask(text: str) -> None:
        found[text] = tokenizer.encode(text)

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        for text in texts:
            assert len(set(found[text])) == 1
            assert found[text] == tokenizer.encode(text)
        assert len({found[text][0] for text in texts}) == len(texts)
    finally:
        tokenizer.close()


def test_a_process_that_was_killed_is_started_again(client: TextClient) -> None:
    before = client.encode("hi", special=False)
    (child,) = children()
    child.kill()
    child.wait()
    assert client.encode("hi", special=False) == before


def test_a_process_that_is_stopped_costs_its_call_seconds(client: TextClient) -> None:
    before = client.encode("hi", special=False)
    (child,) = children()
    child.suspend()
    began_s = time.monotonic()
    with pytest.raises(ModelError, match="it was stopped"):
        client.encode("hi " * 100_000, special=False)  # more than a pipe holds
    assert time.monotonic() - began_s < 60
    assert client.encode("hi", special=False) == before


def test_it_ends_when_its_parent_is_killed(folder: Path) -> None:
    script = (
        "import pathlib, psutil, sys, time\n"
        "from edgepp.model.text.client import TextClient\n"
        "client = TextClient('tiny', pathlib.Path(sys.argv[1]).read_text())\n"
        "client.start(); client.encode('hi', False)\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder / "tokenizer.json")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([child], timeout=PATIENCE_S)
    assert not child.is_running()


def test_an_unused_process_ends_by_itself(folder: Path) -> None:
    """Unless it was started to stay: nobody has to close a tokenizer that encodes a text."""
    client = TextClient("tiny", (folder / "tokenizer.json").read_text())
    client.encode("hi", special=False)
    (child,) = children()
    _, alive = psutil.wait_procs([child], timeout=PATIENCE_S)
    assert not alive


def test_errors_are_of_edgepp(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    try:
        for messages in (
            [],
            [{"role": "user", "content": None}],
            [{"content": "hi"}],
            [{"role": "user", "content": 7}],
        ):
            with pytest.raises(EdgeppError):
                tokenizer.encode_prompt(Conversation(messages))
    finally:
        tokenizer.close()
