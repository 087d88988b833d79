"""Entry of every script: command line, JSON line of the result, and one sentence for an error."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgepp import backend
from edgepp.benchmark.machine import commit, machine
from edgepp.benchmark.report import rounded
from edgepp.cli import error_as_json, run_to_end
from edgepp.errors import EdgeppError

Result = Mapping[str, Any]
"""A script's result, with the names of the JSON line."""


def count(text: str) -> int:
    """A whole number of at least 1, from a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def counts(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas, from a command line."""
    return [count(part) for part in text.split(",")]


@dataclass(frozen=True)
class _SharedOption:
    """An option that several scripts have."""

    help: str
    default: str | int
    read: Callable[[str], str | int] = str
    choices: tuple[str, ...] | None = None


_SHARED = {
    "model": _SharedOption("a name, hub repository or folder (%(default)s)", "smollm2-135m"),
    "stages": _SharedOption("stage processes of the pipeline (%(default)s)", 2, count),
    "threads": _SharedOption("compute threads per stage (%(default)s)", 1, count),
    "rounds": _SharedOption("measured rounds, after one to warm up (%(default)s)", 5, count),
    "backend": _SharedOption("(%(default)s)", "auto", choices=tuple(backend.NAMES)),
    "prompt-tokens": _SharedOption("tokens of the prompt (%(default)s)", 512, count),
    "gen": _SharedOption("tokens to generate, at least two (%(default)s)", 128, count),
}


class ScriptArguments(argparse.ArgumentParser):
    """A command line with ``--json``; an error in the command line is one sentence and exit status 2."""

    def __init__(self, description: str | None) -> None:
        """``description`` is the script's docstring."""
        name = Path(sys.argv[0]).stem
        super().__init__(
            prog=f"python -m bench.{name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--json", action="store_true", help="print only the JSON line")

    def shared(self, *names: str, **defaults: int) -> None:
        """Add options that several scripts have: by name, or by name with another default."""
        for name in (*names, *defaults):
            option = _SHARED[name.replace("_", "-")]
            self.add_argument(
                f"--{name.replace('_', '-')}",
                type=option.read,
                choices=option.choices,
                default=defaults.get(name, option.default),
                help=option.help,
            )

    def error(self, message: str) -> NoReturn:
        """Print ``message`` and end with status 2."""
        hint = f"see {self.prog} --help"
        error_as_json("UsageError", message, hint)
        self.exit(2, f"error: {message}; {hint}\n")


def script(
    bench: str,
    parse: Callable[[], argparse.Namespace],
    measured: Callable[[argparse.Namespace], Result],
    table: Callable[[Result], Iterable[str]],
    faults: Callable[[argparse.Namespace, Result], EdgeppError | None] = lambda *_: None,
) -> None:
    """Run a script: read the command line, measure, print the result, and set the exit status.

    The JSON line has ``bench``, the options, the result of ``measured``, machine and commit. An error that ``faults``
    returns ends the script after the result is printed.
    """

    def work() -> int:
        options = parse()
        result = {"bench": bench, **settings(options), **measured(options)}
        report(result, table(result), json_only=options.json)
        if (fault := faults(options, result)) is not None:
            raise fault
        return 0

    program(work)


def program(work: Callable[[], int]) -> None:
    """Run ``work`` like a command of edgepp: an error is one sentence and an exit status."""
    run_to_end(lambda: work, _show)


def _show(error: EdgeppError) -> None:
    say(f"error: {error}{f'; {error.hint}' if error.hint else ''}")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Options as JSON values, without ``--json``."""
    return {name: _plain(value) for name, value in vars(options).items() if name != "json"}


def _plain(value: Any) -> Any:
    match value:
        case list() | tuple():
            return [_plain(one) for one in value]
        case None | bool() | int() | float():
            return value
    return str(value)


def say(text: str) -> None:
    """Print progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def report(result: Result, table: Iterable[str], *, json_only: bool) -> None:
    """Print the table, then the result with machine and commit as one JSON line."""
    for line in () if json_only else table:
        print(line)
    taken_on = {"machine": result.get("machine") or machine(), "commit": commit()}
    print(json.dumps(rounded({**result, **taken_on})), flush=True)
