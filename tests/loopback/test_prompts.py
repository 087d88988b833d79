"""A pipeline answers conversations with tools, continuations and token ids, and says how its answers ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgepp
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.engine.text_stream import TextStream
from edgepp.errors import ContextExceeded, PromptRefused, UsageError
from edgepp.model.random_checkpoint import TINY
from edgepp.model.text.control_tokens import grammar_literal
from edgepp.model.text.conversation import Conversation, Prompt
from tests.builders.chat_templates import QWEN, agent_messages, tool
from tests.builders.checkpoints import Checkpoints
from tests.loopback.test_tokenizer import change

LONG = replace(TINY, context=2048)
TOOLS = [tool("sum", "adds <|im_end|>", numbers={"type": "array", "items": {"type": "number"}})]
AGENT = Conversation(agent_messages(), TOOLS)
PROMPTS: Sequence[Prompt] = (
    "Once <|im_end|>",
    Conversation.of("hi"),
    AGENT,
    Conversation([*agent_messages(), {"role": "assistant", "content": "It is "}], TOOLS, continues=True),
    (1, 70, 80),
)


@pytest.fixture(scope="module")
def folder(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a template for tools."""
    source = checkpoints(LONG)
    target = change(source, tmp_path_factory.mktemp("prompts") / "m", chat_template=QWEN)
    for path in source.glob("*.safetensors"):
        (target / path.name).symlink_to(path)
    return target


@pytest.fixture
def pipeline(folder: Path) -> Iterator[Pipeline]:
    with Pipeline(PipelineOptions(str(folder), backend="onnx", threads=1)) as opened:
        yield opened


def read(stream: TextStream) -> str:
    return "".join(stream)


def options(tokens: int = 3, **sampling: Any) -> GenerateOptions:
    return GenerateOptions(tokens, ignore_eos=True, sampling=SamplingOptions(**sampling))


def test_a_prompt_is_encoded_for_an_answer_as_it_is_counted(pipeline: Pipeline) -> None:
    for prompt in PROMPTS:
        encoded = pipeline.tokenizer.encode_prompt(prompt)
        stream = pipeline.ask(prompt, options())
        assert stream.prompt_tokens == len(encoded.ids)
        text = read(stream)
        assert stream._request.ids[: stream.prompt_tokens] == encoded.ids
        ids = pipeline.ask(tuple(encoded.ids), options())
        assert read(ids) == text
        assert ids.token_ids == stream.token_ids


def test_an_answer_is_cut_to_what_fits(pipeline: Pipeline) -> None:
    prompt = (70,) * (pipeline.context - 2)
    stream = pipeline.ask(prompt, options(32_000))
    read(stream)
    assert (len(stream.token_ids), stream.finish_reason) == (2, "length")
    with pytest.raises(ContextExceeded) as caught:
        pipeline.ask((70,) * pipeline.context, options(1))
    assert (caught.value.prompt_tokens, caught.value.context) == (pipeline.context, pipeline.context)


def test_a_prompt_longer_than_the_budget_does_not_fit_either(folder: Path) -> None:
    with Pipeline(PipelineOptions(str(folder), backend="onnx", threads=1, budget=40)) as small:
        assert small.context == 40
        stream = small.ask((70,) * 30, options(32_000))
        read(stream)
        assert len(stream.token_ids) == 10
        with pytest.raises(ContextExceeded, match="the context of 40 tokens"):
            small.ask((70,) * 40, options(1))


def test_reuse_is_known_when_the_first_piece_comes(pipeline: Pipeline) -> None:
    prompt = tuple(range(70, 170))
    read(pipeline.ask(prompt, options(1), "ann"))
    stream = pipeline.ask(prompt, options(20), "ann")
    for _ in stream:
        assert stream.timing.reused > 90


def test_the_stop_string_that_ended_an_answer_is_known(pipeline: Pipeline) -> None:
    text = read(pipeline.ask("Once", options(20)))
    stop = text[5:8]
    held = GenerateOptions(20, stop=("never", stop), ignore_eos=True)
    stream = pipeline.ask("Once", held)
    assert read(stream) == text[: text.index(stop)]
    assert (stream.stop_string, stream.finish_reason) == (stop, "stop")
    free = pipeline.ask("Once", options(2))
    read(free)
    assert free.stop_string is None


def test_the_tokens_of_pieces_have_log_probabilities_while_the_answer_streams(pipeline: Pipeline) -> None:
    stream = pipeline.ask("Once", options(20, logprobs=3))
    text = tokens = ""
    ids: list[int] = []
    for piece in stream.pieces():
        text += piece.text
        ids += [token.id for token in piece.tokens]
        assert all(len(token.sampled.top) == 3 for token in piece.tokens)
        assert all(token.raw == stream.spell(token.id) for token in piece.tokens)
        tokens += b"".join(token.raw for token in piece.tokens).decode(errors="replace")
    assert ids == stream.token_ids
    assert tokens == text or "\ufffd" in tokens


def test_a_marker_of_a_tool_call_that_is_a_special_token_is_in_the_text(pipeline: Pipeline) -> None:
    """And so it stays in the answer's text for a parser."""
    marker = grammar_literal("<|im_start|>", pipeline.tokenizer.control_tokens)
    held = GenerateOptions(20, constraint=Constraint("grammar", f'start: {marker} "{{}}" {marker}'))
    stream = pipeline.ask(AGENT, held)
    assert read(stream) == "<|im_start|>{}<|im_start|>"
    assert (stream.finish_reason, stream.token_ids[0]) == ("stop", 1)


def test_what_a_template_refuses_is_told_apart(folder: Path, tmp_path: Path) -> None:
    one_call = "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}{{ messages[0].content }}"
    target = change(folder, tmp_path / "m", chat_template=one_call)
    for path in folder.glob("*.safetensors"):
        (target / path.name).symlink_to(path)

    async def main() -> None:
        async with edgepp.Engine(str(target), backend="onnx", threads=1) as engine:
            with pytest.raises(PromptRefused, match="no tools here"):
                await engine.ask(AGENT, options()).whole()
            with pytest.raises(UsageError, match="a prompt is a text, messages or token ids"):
                engine.ask({"role": "user"}, options())  # type: ignore[arg-type]
            for prompt in (Conversation.of("hi"), [{"role": "user", "content": "hi"}], "hi", [70, 71], (70, 71)):
                answer = await engine.ask(prompt, options()).whole()
                assert len(answer.token_ids) == 3

    asyncio.run(main())
