"""Acts of a person on the chat page, and the parts of the page that tests look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.builders.chromium import Page
from tests.builders.npm_clients import npm_library

SHOWN = "document.querySelector('.thread')?.innerText ?? ''"
ANSWER = "[...document.querySelectorAll('.answer .markdown')].at(-1)?.innerText.trim()"
IDLE = "!document.querySelector('.composer.answering')"
PHONE = (390, 844)
_FAULTS = """axe.run(document, {resultTypes: ["violations"]}).then(({violations}) => violations
  .filter(({impact}) => ["serious", "critical"].includes(impact))
  .map(({id, nodes}) => [id, nodes.map(({html, failureSummary}) => html.slice(0, 200) + failureSummary)]))"""


def ask(page: Page, text: str) -> None:
    """Type a question and send it."""
    page.click(".composer-text")
    page.type(text)
    page.press("Enter")


def finished(page: Page, text: str) -> None:
    """Wait until the newest answer is whole and is ``text``."""
    page.until(f"{IDLE} && {ANSWER} === {json.dumps(text)}", f"the answer is {text!r}")


def prefer(page: Page, colours: str) -> None:
    """Have the page in ``light`` or ``dark``, without motion, and axe ready in it."""
    page.prefer(prefers_color_scheme=colours, prefers_reduced_motion="reduce")
    page.until(f"document.documentElement.dataset.theme === '{colours}'")
    axe: Path = npm_library("axe-core") / "axe-core" / "axe.min.js"
    page.js(axe.read_text() + "; 0")


def faults(page: Page) -> Any:
    """Serious and critical faults that axe finds on the page once nothing moves any more.

    axe notes visible elements first, and focusable ones later: in a drawer that opens meanwhile, the two differ.
    """
    page.until(
        "document.getAnimations().every((one) => one.playState !== 'running'"
        " || one.effect.getComputedTiming().endTime === Infinity)",
        "all that moves has come to rest",
    )
    return page.js(_FAULTS)
