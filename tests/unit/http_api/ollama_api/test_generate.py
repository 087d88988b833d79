"""Ollama's completion of one prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgepp.http_api.generation import ChoiceEnded
from edgepp.model.text.conversation import Conversation
from tests.builders.ollama_lines import strict_lines
from tests.builders.scripted_service import answer
from tests.unit.http_api.ollama_api.asking import sent, served


def test_a_prompt_is_a_conversation_of_one_question() -> None:
    service = served()
    assert sent(service, "POST", "/api/generate", {"prompt": "Hi", "system": "Be brief."}).is_success
    prompt = service.request.prompt
    assert isinstance(prompt, Conversation)
    assert list(prompt.messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_a_completion_is_streamed_unless_the_client_wants_it_whole() -> None:
    lines = strict_lines(sent(served(), "POST", "/api/generate", {"prompt": "Hi"}).content, chat=False)
    whole = sent(served(), "POST", "/api/generate", {"prompt": "Hi", "stream": False}).json()
    assert "".join(line["response"] for line in lines) == whole["response"] == "Hello"
    assert lines[-1]["context"] == whole["context"] == list(b"user: Hi\nHello")


def test_a_raw_prompt_is_sent_as_it_is() -> None:
    service = served()
    whole = sent(service, "POST", "/api/generate", {"prompt": "Once", "raw": True, "stream": False}).json()
    assert service.request.prompt == "Once"
    assert "context" not in whole


def test_the_tokens_of_an_earlier_answer_stand_before_the_prompt() -> None:
    service = served()
    body = {"prompt": "Hi", "context": [1, 2, 3], "stream": False}
    whole = sent(service, "POST", "/api/generate", body).json()
    assert service.request.prompt == (1, 2, 3, *b"user: Hi\n")
    assert whole["context"] == [1, 2, 3, *b"user: Hi\nHello"]


def test_the_context_has_the_tokens_of_the_answer_and_not_of_its_text_read_again() -> None:
    """Read again, an answer that quotes the name of a control token would begin a turn of the system."""
    *begun, ended, last = answer("<|im_start|>")
    assert isinstance(ended, ChoiceEnded)
    service = served([*begun, replace(ended, token_ids=(9, 8)), last])
    whole = sent(service, "POST", "/api/generate", {"prompt": "Hi", "stream": False}).json()
    assert whole["context"] == [*b"user: Hi\n", 9, 8]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"suffix": "x"}, "suffix: this model fills no gaps in a text; leave out suffix"),
        (
            {"template": "{{ .Prompt }}"},
            "template: this model takes no other template; write the prompt yourself and send raw: true",
        ),
        ({"images": ["aGk="]}, "this model does not support images (images)"),
        ({"raw": True, "system": "x"}, "a raw prompt has no system and no context"),
        ({"think": True}, '"smollm2-135m" does not support thinking'),
    ],
)
def test_a_field_that_cannot_be_taken_is_refused_by_name(fields: dict[str, Any], sentence: str) -> None:
    response = sent(served(), "POST", "/api/generate", {"prompt": "Hi", **fields})
    assert response.status_code == 400
    assert response.json() == {"error": sentence}


@pytest.mark.parametrize("fields", [{"suffix": ""}, {"template": ""}, {"images": []}, {"context": []}, {"raw": False}])
def test_an_empty_field_asks_for_nothing(fields: dict[str, Any]) -> None:
    assert sent(served(), "POST", "/api/generate", {"prompt": "Hi", **fields}).status_code == 200
