"""The entry of every script: its command line, its one JSON line, and the sentence that it ends with when it fails."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from edgepp import backend
from edgepp.benchmark.machine import commit, machine
from edgepp.benchmark.report import rounded
from edgepp.cli import error_as_json, run_to_end
from edgepp.errors import EdgeppError

Result = Mapping[str, Any]
"""What a script measured, as the JSON line has it."""


def count(text: str) -> int:
    """A whole number of at least 1, from a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def counts(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas, from a command line."""
    return [count(part) for part in text.split(",")]


_SHARED: Mapping[str, Mapping[str, Any]] = {
    "model": {"default": "smollm2-135m", "help": "a name, hub repository or folder (%(default)s)"},
    "stages": {"type": count, "default": 2, "help": "stage processes of the pipeline (%(default)s)"},
    "threads": {"type": count, "default": 1, "help": "compute threads of each stage (%(default)s)"},
    "rounds": {"type": count, "default": 5, "help": "measured rounds, after one to warm up (%(default)s)"},
    "backend": {"choices": backend.NAMES, "default": "auto", "help": "(%(default)s)"},
    "prompt-tokens": {"type": count, "default": 512, "help": "tokens of the prompt (%(default)s)"},
    "gen": {"type": count, "default": 128, "help": "tokens to generate, two at least (%(default)s)"},
}


class Arguments(argparse.ArgumentParser):
    """A command line whose mistakes are told in one sentence. Every script has ``--json``."""

    def __init__(self, description: str | None) -> None:
        """``description`` is the script's docstring."""
        name = Path(sys.argv[0]).stem
        super().__init__(
            prog=f"python -m bench.{name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--json", action="store_true", help="print only the JSON line")

    def shared(self, *names: str, **defaults: Any) -> None:
        """Add options that several scripts have: by name, or with another default."""
        for name in (*names, *defaults):
            option = name.replace("_", "-")
            changed = {"default": defaults[name]} if name in defaults else {}
            self.add_argument(f"--{option}", **{**_SHARED[option], **changed})

    def error(self, message: str) -> NoReturn:
        """Say it and end with status 2."""
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
    """Run a script: read the command line, measure, print, and end with the status that the result deserves.

    The JSON line has ``bench``, the options, what was ``measured``, machine and commit. An error of ``faults`` ends
    the script after the result is printed.
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
    """Run ``work`` as a command of edgepp is run: what goes wrong is one sentence and an exit status."""
    run_to_end(lambda: work, _show)


def _show(error: EdgeppError) -> None:
    say(f"error: {error}{f'; {error.hint}' if error.hint else ''}")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options as JSON has them, less those that only say what is printed."""
    return {name: _plain(value) for name, value in vars(options).items() if name != "json"}


def _plain(value: Any) -> Any:
    match value:
        case list() | tuple():
            return [_plain(one) for one in value]
        case None | bool() | int() | float():
            return value
    return str(value)


def say(text: str) -> None:
    """Tell how it goes, on standard error."""
    print(text, file=sys.stderr, flush=True)


def report(result: Result, table: Iterable[str], *, json_only: bool) -> None:
    """Print the table and, last, the result with machine and commit as one JSON line."""
    for line in () if json_only else table:
        print(line)
    taken_on = {"machine": result.get("machine") or machine(), "commit": commit()}
    print(json.dumps(rounded({**result, **taken_on})), flush=True)
