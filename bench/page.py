"""Smoothness of the web page with long answers: the longest tasks of the browser's main thread, in Chromium.

    python -m bench.page

The answer comes as fast as the server sends it, from a script: a model would be slower, and leave the page more time.
Each shape of text is one answer: mixed Markdown, one long list, one long table, one long block of code, one paragraph.
Then the page is loaded again, with that conversation in its storage. Chromium's own trace tells how long each task took
and how much of it the thread computed; the rest it waited for a processor, which other programs had.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.toolkit.figures import table
from bench.toolkit.script import Result, ScriptArguments, count, script
from edgepp.errors import UsageError
from tests.builders.chromium import BROWSER, Chromium, Page, chromium
from tests.builders.page_server import PageServer, page_server
from tests.builders.scripted_service import answer

MIXED = ("\n\n### Head\n\n", "\n\n- item ", "\n- item ", "\n\n```py\nx = 1\n", "\n```\n\n", "\n\n")
_DONE = "!document.querySelector('.composer.answering') && !!document.querySelector('.figures')"
_SETTLED = """new Promise((done) => {
  const look = (before, same) => {
    const now = document.querySelectorAll(".answer .markdown *").length;
    if (same === 30) done(now);
    else requestAnimationFrame(() => look(now, now === before && now > 0 ? same + 1 : 0));
  };
  look(-1, 0);
})"""
"""Resolves when nothing has been added for 30 frames, which is longer than a text rests."""
_UNITS = ("longest task, ms", "computing, ms", "above 100 ms")
_CATEGORIES = ("toplevel", "devtools.timeline")


def _mixed(token: int) -> str:
    return MIXED[token // 40 % len(MIXED)] if token % 40 == 0 else "word "


def _shaped(first: str, later: str) -> Callable[[int], str]:
    return lambda token: (first if token == 0 else later) if token % 12 == 0 else "word "


SHAPES: dict[str, Callable[[int], str]] = {
    "mixed": _mixed,
    "list": _shaped("- ", "\n- "),
    "table": _shaped("| a | b |\n|---|---|\n| ", " | x |\n| "),
    "code": _shaped("```py\n", "\n"),
    "python": _shaped("```py\n", "\n    return 'x'  # "),
    "paragraph": lambda _: "word ",
}
"""The text of a token by its number."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.add_argument("--tokens", type=count, default=10_000, help="tokens of each answer (%(default)s)")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Result:
    """The figures of each shape.

    Raises:
        UsageError: there is no Chromium.
    """
    if BROWSER is None:
        raise UsageError("no Chromium is installed", "install chromium")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        chromium(Path(profile)) as browser,
        page_server() as server,
    ):
        rows = []
        for name, text_of in SHAPES.items():
            with browser.page() as page:
                page.screen(1280, 800)
                page.open(server.url)
                texts = [text_of(token) for token in range(options.tokens)]
                rows.append({"shape": name, **_row(browser, page, server, texts)})
        return {"rows": rows}


def _row(browser: Chromium, page: Page, server: PageServer, texts: list[str]) -> dict[str, Any]:
    server.script(answer(*texts))
    page.click(".composer-text")
    page.type("Long")
    with browser.trace(*_CATEGORIES) as streaming:
        began_ms = page.js("performance.now()")
        page.press("Enter")
        page.until(_DONE)
        took_ms = page.js("performance.now()") - began_ms
        page.js(_SETTLED)
    work = page.js("import('/web/js/chat/markdown.js').then(({work}) => work)")
    with browser.trace(*_CATEGORIES) as loading:
        page.call("Page.reload")
        page.until(_DONE)
        page.js(_SETTLED)
    return {
        "seconds": took_ms / 1000,
        **{f"streaming_{name}": value for name, value in _longest(streaming).items()},
        **{f"stored_{name}": value for name, value in _longest(loading).items()},
        "frames": work["frames"],
        "pieces": work["pieces"],
        "longest_render_ms": work["longestMs"],
    }


def _longest(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Tasks of the pages' main threads: milliseconds of the longest, most computing of one, number above 100 ms."""
    mains = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        event for event in events if event["name"].endswith("RunTask") and (event["pid"], event["tid"]) in mains
    ]  # fmt: skip
    return {
        "task_ms": max((task.get("dur", 0) for task in tasks), default=0) / 1000,
        "task_cpu_ms": max((task.get("tdur", 0) for task in tasks), default=0) / 1000,
        "above_100_ms": sum(task.get("dur", 0) > 100_000 for task in tasks),
    }


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    times = ("task_ms", "task_cpu_ms", "above_100_ms")
    headings = (
        "shape",
        "seconds",
        *(f"{phase}{unit}" for phase in ("", "stored: ") for unit in _UNITS),
        "frames",
        "render, ms",
    )
    yield from table(
        headings,
        [
            (
                one["shape"],
                f"{one['seconds']:.1f}",
                *(f"{one[f'{phase}_{name}']:.0f}" for phase in ("streaming", "stored") for name in times),
                str(one["frames"]),
                f"{one['longest_render_ms']:.0f}",
            )
            for one in result["rows"]
        ],
    )


if __name__ == "__main__":
    script("page", parse, measured, lines)
