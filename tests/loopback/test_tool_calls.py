"""Tools on real tokenizers, real engines and real weights: what a grammar promises holds whatever the weights are."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.model.fetch import fetch
from edgepp.model.random_checkpoint import TINY
from edgepp.model.text.conversation import Conversation
from edgepp.model.text.tokenizer import Tokenizer
from edgepp.python_api import Engine
from edgepp.tool_calls.formats import ToolFormat, format_of
from edgepp.tool_calls.tool_use import CallArguments, CallEnded, CallStarted, Text, Tool, ToolUse
from tests.builders.checkpoints import Checkpoints
from tests.unit.tool_calls.answers import joined
from tests.unit.tool_calls.grammars import bounded_tool_schema

LOOK = Tool("look", "Looks at the weather of a place.", bounded_tool_schema())
NOW = Tool("now", "Tells the time.", {"type": "object", "properties": {}})
QUESTION = [{"role": "user", "content": "What is the weather like?"}]


def made_form(path: Path) -> ToolFormat:
    tokenizer = Tokenizer.load(path)
    return format_of(tokenizer.template, tokenizer.control_tokens)


async def parts(engine: Engine, form: ToolFormat, use: ToolUse, sampling: SamplingOptions, max_tokens: int = 200):
    options = GenerateOptions(max_tokens, sampling=sampling, constraint=form.constraint(use))
    parser = form.parser(use)
    found = []
    async for text in engine.ask(form.prepare(Conversation(QUESTION), use), options):
        found += parser.add(text)
    return joined([*found, *parser.finish()])


def check_call(found) -> None:
    assert [type(part) for part in found] == [CallStarted, CallArguments, CallEnded], found
    arguments = json.loads(found[1].text)
    if found[0].name == "look":
        assert arguments["unit"] in ("celsius", "fahrenheit")
        assert arguments["place"]["kind"] == "city"
        assert arguments.get("days", 1) in range(1, 15)
    else:
        assert (found[0].name, arguments) == ("now", {})


def test_a_model_of_random_weights_calls_as_required(checkpoints: Checkpoints) -> None:
    # the tiny tokenizer has few tokens, so the prompt has many
    asyncio.run(call_with_random_weights(checkpoints(replace(TINY, context=4096))))


async def call_with_random_weights(path: Path) -> None:
    form = made_form(path)
    async with Engine(str(path), stages=2) as engine:
        for seed in range(3):
            sampling = SamplingOptions(temperature=1.0, seed=seed)
            check_call(await parts(engine, form, ToolUse((LOOK, NOW), "required"), sampling, 400))
            named = await parts(engine, form, ToolUse((LOOK, NOW), "required", named="now"), sampling, 400)
            assert named[0] == CallStarted("now")


def test_smollm2_calls_as_required_and_answers_in_text_otherwise() -> None:
    asyncio.run(call_with_smollm2())


async def call_with_smollm2() -> None:
    path = fetch("smollm2-135m")
    form = made_form(path)
    async with Engine(str(path), stages=2) as engine:
        check_call(await parts(engine, form, ToolUse((LOOK, NOW), "required"), SamplingOptions()))
        text = await parts(engine, form, ToolUse((LOOK, NOW), "none"), SamplingOptions(), 10)
        assert [type(part) for part in text] == [Text]
