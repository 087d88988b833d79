"""Guesses of prompt lookup on real texts: how many are made, how many are right, by the length of their match.

    python -m bench.lookup

Texts of this repository, as tokens of the model: commits that edit a file (the prompt is the file before, the answer
the file after), new code, prose, a story, and JSON. No model runs: a guess is right where it is the text's next token.
The latest occurrence of the last three tokens, else two, is measured beside the longest match.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.toolkit.figures import table
from bench.toolkit.script import Result, ScriptArguments, count, script
from edgepp.engine.prompt_lookup import OwnerTexts, PromptLookup
from edgepp.errors import UsageError
from edgepp.model.fetch import fetch
from edgepp.model.text.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
EDITS = 12
"""Edits of each kind."""
COMMITS = 200
LENGTHS = (2, 3, 4, 6, 8, 12, 16, 32)
"""Lower bounds of the classes of match lengths."""

Pair = tuple[str, str]
"""A prompt and its answer."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", gen=1200)
    parser.add_argument("--edits", type=count, default=EDITS, help="edits of each kind (%(default)s)")
    return parser.parse_args()


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    if found.returncode:
        raise UsageError(f"git {arguments[0]} failed here: {found.stderr.strip()}", "run this in a clone")
    return found.stdout


def edits(suffix: str, number: int) -> Iterator[Pair]:
    """Small changes of whole files with this ``suffix``, newest first."""
    for commit in _git("log", "--format=%H", "-n", str(COMMITS)).split():
        for line in _git("show", "--numstat", "--format=", commit).splitlines():
            added, removed, name = line.split("\t")
            if not name.endswith(suffix) or "=>" in name or not 5 <= int(added) + int(removed) <= 60:
                continue
            before, after = (
                _git("show", f"{at}:{name}") if _git("ls-tree", at, name) else "" for at in (f"{commit}~1", commit)
            )
            if 2000 < len(before) < 6000 and after:
                yield f"```\n{before}\n```\nMake the changes and write out the whole file.\n", after
                number -= 1
                if not number:
                    return


def texts(options: argparse.Namespace) -> dict[str, list[Pair]]:
    """Prompts and answers by task."""
    code = [path.read_text() for path in sorted(ROOT.glob("edgepp/**/*.py"))[::17]]
    prose = [(ROOT / name).read_text() for name in ("README.md", "docs/clients.md", "docs/failures.md")]
    story = (ROOT / "bench/text.txt").read_text()
    session = json.dumps(json.loads((ROOT / "tests/agent_session/session.json").read_text()), indent=1)
    listing = [{"path": path.name, "folder": path.parent.name, "size": path.stat().st_size} for path in ROOT.iterdir()]
    return {
        "edit code": list(edits(".py", options.edits)),
        "edit text": list(edits(".md", options.edits)),
        "new code": [(text[:700], text[700:]) for text in code if len(text) > 2500],
        "prose": [(text[:400], text[400:]) for text in prose],
        "story": [(story[:400], story[400:])],
        "json": [(session[:400], session[400:]), ("[", json.dumps(listing, indent=1)[1:])],
    }


class Latest:
    """The guess after the latest occurrence of the last three tokens, else of the last two."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, ids: Sequence[int], _: int) -> Sequence[int]:
        """The token that followed the last tokens of ``ids``; none where these are new."""
        for end in range(self._indexed + 1, len(ids)):
            for size in (3, 2):
                if size <= end:
                    self._seen[tuple(ids[end - size : end])] = end
        self._indexed = max(self._indexed, len(ids) - 1)
        found = [self._seen.get(tuple(ids[-size:])) for size in (3, 2)]
        return [ids[at] for at in found if at is not None][:1]


class Tally:
    """Guesses of one way to guess for one task."""

    def __init__(self) -> None:
        self.tokens = self.guessed = self.right = 0
        self.propose_s = 0.0

    def take(
        self, draft: PromptLookup | Latest, prompt: Sequence[int], answer: Sequence[int], by: Counter[Any]
    ) -> None:
        """Guess each token of ``answer`` in turn, and count into ``by`` (match length, right)."""
        ids = list(prompt)
        if ids:
            draft.propose(ids, 1)
        for token in answer:
            began_s = time.perf_counter()
            guess = draft.propose(ids, 1) if ids else ()
            self.propose_s += time.perf_counter() - began_s
            self.tokens += 1
            self.guessed += bool(guess)
            self.right += bool(guess) and guess[0] == token
            if guess and isinstance(draft, PromptLookup):
                by[draft.match, guess[0] == token] += 1
            ids.append(token)


def measured(options: argparse.Namespace) -> Result:
    """One row per task and way to guess, and one per class of match lengths."""
    tokenizer = Tokenizer.load(fetch(options.model))
    by: Counter[Any] = Counter()
    ways: dict[str, Callable[[], PromptLookup | Latest]] = {
        "longest match": lambda: OwnerTexts().begin(""),
        "latest 3 or 2": Latest,
    }
    rows: list[dict[str, Any]] = []
    try:
        for task, pairs in texts(options).items():
            tallies = {way: Tally() for way in ways}
            for prompt, answer in pairs:
                ids = [tokenizer.encode(text) if text else [] for text in (prompt, answer)]
                for way, tally in tallies.items():
                    tally.take(ways[way](), ids[0], ids[1][: options.gen], by)
            rows += [{"task": task, "way": way, **_figures(tally)} for way, tally in tallies.items()]
    finally:
        tokenizer.close()
    return {"rows": rows, "lengths": list(_by_length(by))}


def _figures(tally: Tally) -> dict[str, Any]:
    return {
        "tokens": tally.tokens,
        "guessed": tally.guessed / max(1, tally.tokens),
        "right_of_guessed": tally.right / max(1, tally.guessed),
        "right_of_all": tally.right / max(1, tally.tokens),
        "propose_us": tally.propose_s / max(1, tally.tokens) * 1e6,
    }


def _by_length(by: Counter[Any]) -> Iterator[dict[str, Any]]:
    for low, high in zip(LENGTHS, (*LENGTHS[1:], 1 << 30), strict=True):
        tried = sum(number for (length, _), number in by.items() if low <= length < high)
        right = sum(number for (length, good), number in by.items() if low <= length < high and good)
        yield {"match": low, "guesses": tried, "right": right / max(1, tried)}


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    headings = ("task", "way", "tokens", "guessed", "right of these", "right of all", "µs a call")
    yield from table(
        headings,
        [
            (
                one["task"],
                one["way"],
                str(one["tokens"]),
                f"{one['guessed']:.2f}",
                f"{one['right_of_guessed']:.2f}",
                f"{one['right_of_all']:.3f}",
                f"{one['propose_us']:.1f}",
            )
            for one in result["rows"]
        ],
    )
    yield ""
    rows = [(str(one["match"]), str(one["guesses"]), f"{one['right']:.2f}") for one in result["lengths"]]
    yield from table(("match from", "guesses", "right"), rows)


if __name__ == "__main__":
    script("lookup", parse, measured, lines)
