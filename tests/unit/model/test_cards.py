"""The bytes in cards follow the formula of ``Shape``, and so do the bytes of checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepp.errors import ModelError
from edgepp.model.catalogue.cards import Card, catalogue, find, read_card, read_cards
from edgepp.model.catalogue.source import HubRepository, LocalFolder, Wheel, resolve
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint
from tests.builders.checkpoints import assert_bytes_equal

CARDS = list(catalogue().values())


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_stored_bytes_follow_from_the_shape(card: Card) -> None:
    assert card.bytes_per_layer == card.layer_bytes()
    assert card.bytes_embedding == card.embedding_bytes()
    assert card.bytes_head == card.head_bytes()
    assert card.heads % card.kv_heads == 0
    assert card.name == card.name.lower()


@pytest.mark.parametrize(
    ("name", "weight_bytes"),
    [
        # Sizes that public files quote of these repositories (total_size in model.safetensors.index.json).
        ("llama-3.2-1b-4bit", 695_242_752),
        ("llama-3.2-3b-4bit", 1_807_423_488),
        ("llama-3.1-8b-4bit", 4_517_404_672),
        ("smollm2-135m-8bit", 142_955_136),
    ],
)
def test_bytes_are_those_that_the_hub_publishes(name: str, weight_bytes: int) -> None:
    assert find(name).bytes_total == weight_bytes


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("tied", [True, False])
def test_random_checkpoint_has_the_bytes_of_its_shape(
    tmp_path: Path, family: str, bits: int | None, tied: bool
) -> None:
    shape = replace(TINY, family=family, bits=bits, group_size=32 if bits else None, tied=tied, dtype="bfloat16")
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m", shape, files=2))
    sizes: dict[str, Any] = {
        "bytes_per_layer": shape.layer_bytes(),
        "bytes_embedding": shape.embedding_bytes(),
        "bytes_head": shape.head_bytes(),
    }
    fields: dict[str, Any] = {name: getattr(shape, name) for name in shape.__dataclass_fields__}
    assert_bytes_equal(Card(name="m", wheel="m==1", **fields, **sizes), checkpoint)


GOOD = """
name = "tiny"
wheel = "tiny==1"
layers = 1
heads = 2
kv_heads = 1
head_size = 8
hidden = 16
ffn = 32
vocabulary = 64
tied = true
context = 128
bytes_per_layer = 1
bytes_embedding = 1
bytes_head = 1
"""


def test_a_card_is_read(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(GOOD)
    assert read_cards(tmp_path)["tiny"].hidden == 16


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("hidden = 16", "hidden = ", "Invalid value"),
        ("hidden = 16", "", "hidden is missing"),
        ("hidden = 16", "hidden = -1", "hidden is -1"),
        ("hidden = 16", "hidden = '16'", "hidden is '16'"),
        ("hidden = 16", "hidden = true", "hidden is True"),
        ("hidden = 16", "hidden = 16\nhiden = 1", "unknown key hiden"),
        ('wheel = "tiny==1"', "", "a repository or a wheel"),
        ("hidden = 16", "hidden = 16\nbits = 4", "bits and group_size"),
        ("hidden = 16", "hidden = 16\ndtype = 'int8'", "dtype is 'int8'"),
        ('name = "tiny"', 'name = "other"', "named after its file"),
    ],
)
def test_a_bad_card_is_refused_by_name(tmp_path: Path, old: str, new: str, fault: str) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ModelError, match=fault) as caught:
        read_card(path)
    assert str(path) in str(caught.value)


def test_a_misspelt_name_gets_the_names_close_to_it() -> None:
    with pytest.raises(ModelError) as caught:
        find("llama-3.2-1b-4bits")
    assert "llama-3.2-1b-4bit" in caught.value.hint


def test_model_arguments(tmp_path: Path) -> None:
    assert isinstance(resolve("smollm2-135m"), Wheel)
    pinned = resolve("mlx-community/Llama-3.2-1B-Instruct-4bit")
    assert pinned == resolve("llama-3.2-1b-4bit")
    assert isinstance(pinned, HubRepository)
    assert pinned.revision == find("llama-3.2-1b-4bit").revision
    assert resolve("org/name") == HubRepository("org/name", "main")
    assert resolve("org/name@v1.0") == HubRepository("org/name", "v1.0")
    assert resolve(str(tmp_path)) == LocalFolder(tmp_path)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("smollm", "no model called 'smollm'"),
        ("./absent", "no folder ./absent"),
        ("/absent", "no folder /absent"),
        ("org/..", "no model called"),
        ("org/na--me", "no model called"),
        ("org/name@../../etc", "no model called"),
        ("https://huggingface.co/org/name", "no model called"),
        ("", "no model called"),
    ],
)
def test_invalid_model_arguments(model: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence) as caught:
        resolve(model)
    assert caught.value.hint
