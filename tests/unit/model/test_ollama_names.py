"""Model names as Ollama writes them."""

from __future__ import annotations

import pytest

from edgepp.model.catalogue.cards import catalogue
from edgepp.model.catalogue.ollama_names import candidates


@pytest.mark.parametrize(
    ("name", "cards"),
    [
        ("llama3.1:8b", ["llama-3.1-8b-4bit"]),
        ("Llama3.1:8B-instruct-q4_K_M", ["llama-3.1-8b-4bit"]),
        ("llama3.2:1b-instruct-q8_0", ["llama-3.2-1b-8bit"]),
        ("llama3.2:1b-instruct-fp16", ["llama-3.2-1b-bf16"]),
        ("llama-3.1-8b", ["llama-3.1-8b-4bit"]),
        ("llama3.3", ["llama-3.3-70b-4bit"]),
        ("llama3.2:latest", ["llama-3.2-1b-4bit", "llama-3.2-3b-4bit"]),
        ("smollm2:135m", ["smollm2-135m"]),
        ("smollm2:360m", ["smollm2-360m-bf16"]),
        ("llama3.1:8b-q5_K_M", []),
        ("llama3.1:9b", []),
        ("mistral:7b", []),
        ("", []),
    ],
)
def test_a_name_of_ollama_finds_its_cards(name: str, cards: list[str]) -> None:
    assert candidates(name, catalogue()) == cards
