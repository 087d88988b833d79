"""Options of commands: one click option, one field, one default; help that is complete."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any

import click
import pytest
from click.testing import CliRunner

from edgepp.cli.bench import bench
from edgepp.cli.chat import chat
from edgepp.cli.commands import cli
from edgepp.cli.plan import plan
from edgepp.cli.serve_join import join, serve

COMMANDS = [bench, chat, join, plan, serve]


def kinds(command: click.Command) -> list[type[Any]]:
    found: tuple[Callable[[], type[Any]], ...] = vars(command.callback)["kinds"]
    return [find() for find in found]


def option_fields(command: click.Command) -> dict[str, Field[Any]]:
    every = [field for kind in kinds(command) for field in fields(kind)]
    assert len({field.name for field in every}) == len(every), "two dataclasses share a field"
    return {field.name: field for field in every}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_every_option_is_one_field_or_one_parameter(command: click.Command) -> None:
    given = {param.name for param in command.params if param.expose_value}  # others act when they are parsed
    by_name = {
        name
        for name, parameter in inspect.signature(inspect.unwrap(command.callback or print)).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    held = set(option_fields(command))
    assert given <= held | by_name
    assert not held & by_name
    if command is not join:  # a token comes from the environment, never from a command line
        assert held - {"limits"} <= given  # the limits of the HTTP server are for programs


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_defaults_stand_in_the_fields_alone_and_help_says_the_same(command: click.Command) -> None:
    values = command.make_context("edgepp", []).params
    for param in command.params:
        field = option_fields(command).get(str(param.name))
        if field is None:
            continue
        is_flag = isinstance(param, click.Option) and param.is_flag
        assert values[str(param.name)] in (None, (), *([False] if is_flag else [])), param.name
        if is_flag:
            assert field.default is False
        documented = re.search(r"\[default: (\w+[\w.-]*)\]$", getattr(param, "help", "") or "")
        if documented is not None and field.default not in (None, MISSING):
            assert documented[1] == str(field.default), param.name


def test_what_is_not_given_is_left_to_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepp.cli import chat as module

    asked: list[tuple[object, ...]] = []

    async def take(*arguments: object) -> None:
        asked.append(arguments)

    monkeypatch.setattr(module, "_chat", take)
    monkeypatch.setattr("sys.stdin", None)
    with chat.make_context("chat", ["-p", "hi", "--kv-bits", "8", "--peer", "a:1", "--stop", "x"]) as context:
        chat.invoke(context)
    ((asking, options, given, where),) = asked
    assert asking == module.PromptArguments("hi")
    assert given == {}
    assert where == module.ModelArguments(peers=("a:1",), kv_bits=8)
    assert (options.max_tokens, options.stop) == (512, ("x",))  # type: ignore[attr-defined]


def test_help_lists_commands_in_whole_sentences() -> None:
    help_text = CliRunner().invoke(cli, ["--help"], terminal_width=80).output
    assert "..." not in help_text.partition("Commands:")[2]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_help_lists_every_option_once(command: click.Command) -> None:
    context = command.make_context("edgepp", [], resilient_parsing=True)
    listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", command.get_help(context), flags=re.MULTILINE)
    options = [param.opts for param in command.get_params(context) if isinstance(param, click.Option)]
    assert sorted(listed) == sorted(next(name for name in names if name.startswith("--")) for names in options)
