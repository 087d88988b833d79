"""Options of the Python interface out of bounds or of another type: refused by name, before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

import edgepp


@pytest.mark.parametrize(
    "options",
    [
        {"stages": 0}, {"stages": "2"}, {"stages": 2.5}, {"stages": True}, {"threads": "x"}, {"threads": 0},
        {"context": 0}, {"context": -5}, {"context": "x"}, {"budget": 0}, {"budget": -1}, {"traces": -1},
        {"codecs": ("zip",)}, {"codecs": "lz4"}, {"tensor": 0},
    ],
)  # fmt: skip
def test_an_engine_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(edgepp.UsageError):
        edgepp.Engine("smollm2-135m", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "x"}, {"backend": "x"}, {"kv_bits": 3}, {"memory": -1}, {"memory": 1.5}, {"context": "x"},
        {"context": 0}, {"stages": -1}, {"stages": "1"}, {"max_sequences": 0}, {"keep_copies": 2}, {"tensor": 0},
    ],
)  # fmt: skip
def test_serve_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(edgepp.UsageError):
        edgepp.serve("smollm2-135m", **options)


def test_what_is_no_prompt_and_no_number_of_answers_is_refused() -> None:
    engine: Any = edgepp.Engine("smollm2-135m")
    for question in (b"bytes", 5, None, [1.5], ["text"]):
        with pytest.raises(edgepp.UsageError, match="a prompt is"):
            engine.choices(question, 2)
    for number in (0, 17, "2", 2.5):
        with pytest.raises(edgepp.UsageError, match="choices"):
            engine.choices("hi", number)
    with pytest.raises(edgepp.UsageError, match="is text"):
        edgepp.Constraint("regex", 5)  # type: ignore[arg-type]
