"""Guessing ahead over a slow link: token/s with prompt lookup against without, on one pair of stage processes.

    python bench/speculation.py --model smollm2-135m --delay-ms 10 --rounds 5

Three tasks: copying a text with small edits, where guesses are right; drawing a story, where few are; and drawing at
random after a random prompt, where none are. Both pipelines stay open over the same stages, behind `proxy.py`, and are
asked in turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measure import Arguments, count, prompt, report, say, script
from rig import started
from slow_link import Kind

from edgepp import backend
from edgepp.engine.pipeline import Pipeline, PipelineOptions
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.stage_handshake import Endpoint
from edgepp.engine.text_stream import TextStream
from edgepp.errors import UsageError
from edgepp.layers import split_evenly
from edgepp.model.checkpoint import Checkpoint
from edgepp.model.fetch import fetch


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = Arguments(__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a name, hub repository or folder (%(default)s)")
    parser.add_argument("--stages", type=count, default=2, help="stage processes (%(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="compute threads a stage (%(default)s)")
    parser.add_argument("--delay-ms", type=float, default=10.0, help="of every link, each way (%(default)s)")
    parser.add_argument("--speculate", default="lookup", help="what guesses: lookup, or a small model (%(default)s)")
    parser.add_argument("--gen", type=count, default=192, help="tokens of an answer (%(default)s)")
    parser.add_argument("--words", type=count, default=100, help="of the text to copy (%(default)s)")
    parser.add_argument("--rounds", type=count, default=5, help="measured rounds, after one to warm up (%(default)s)")
    parser.add_argument("--exact", action="store_true", help="float32 arithmetic, in which answers are the same")
    parser.add_argument("--backend", choices=backend.NAMES, default="auto", help="(%(default)s)")
    return parser.parse_args()


class Bench:
    """Stage processes, a proxy before each, and two pipelines over them. Close it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        folder = fetch(options.model)
        checkpoint = Checkpoint.open(folder)
        self._vocabulary = checkpoint.vocab_size
        self._owned = ExitStack()
        try:
            found = started(
                folder,
                split_evenly(checkpoint.num_layers, options.stages),
                Kind("slow", options.delay_ms),
                model=options.model,
                threads=options.threads,
                backend_name=options.backend,
                awake=True,
                exact=options.exact,
            )
            endpoints = tuple(Endpoint((address,)) for address in self._owned.enter_context(found))
            self.pipelines = {how: self._pipeline(endpoints, how) for how in ("off", options.speculate)}
        except BaseException:
            self._owned.close()
            raise

    def _pipeline(self, endpoints: tuple[Endpoint, ...], how: str) -> Pipeline:
        options = self._options
        where = PipelineOptions(options.model, endpoints, threads=options.threads, exact=options.exact, speculate=how)
        return self._owned.enter_context(Pipeline(where))

    def copy(self, pipeline: Pipeline, turn: int) -> TextStream:
        """Copy a text in which some words are misspelt, greedily, to where the model ends it."""
        words = (Path(__file__).parent / "text.txt").read_text(encoding="utf-8").split()
        text = words[turn * 7 : turn * 7 + self._options.words]
        text[10::25] = [word[::-1] for word in text[10::25]]
        question = f"{' '.join(text)}\n\nCorrect the spelling of the text above and write out the whole text."
        options = GenerateOptions(self._options.gen)
        return pipeline.ask([{"role": "user", "content": question}], options, owner=str(turn))

    def story(self, pipeline: Pipeline, turn: int) -> TextStream:
        """Draw a story at temperature 1, which repeats a phrase now and then."""
        sampling = SamplingOptions(temperature=1.0, seed=turn)
        options = GenerateOptions(self._options.gen, ignore_eos=True, sampling=sampling)
        return pipeline.ask([{"role": "user", "content": "Tell a story about a lighthouse."}], options, owner=str(turn))

    def random(self, pipeline: Pipeline, turn: int) -> TextStream:
        """Draw an answer to a random prompt, at a temperature at which the model rambles."""
        ids = prompt(self._vocabulary, 64, turn)
        sampling = SamplingOptions(temperature=1.5, seed=turn)
        request = pipeline.engine.submit(ids, GenerateOptions(self._options.gen, ignore_eos=True, sampling=sampling))
        return TextStream(pipeline.engine, request, pipeline.tokenizer.detokenizer())

    def close(self) -> None:
        """End everything."""
        self._owned.close()


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a task: both rates, their ratio round by round, and how many guesses were right."""
    bench = Bench(options)
    tasks = {"copy": bench.copy, "story": bench.story, "random": bench.random}
    rates: dict[str, dict[str, list[float]]] = {task: {how: [] for how in bench.pipelines} for task in tasks}
    guesses = dict.fromkeys(tasks, (0, 0))
    same = dict.fromkeys(tasks, 0)
    try:
        for turn in range(options.rounds + 1):
            for task, ask in tasks.items():
                answers = {}
                for how, pipeline in bench.pipelines.items():
                    answer = answers[how] = ask(pipeline, turn)
                    for _ in answer:
                        pass
                    if turn:
                        rates[task][how].append(answer.timing.decode_tok_s)
                        guessed, right = guesses[task]
                        guesses[task] = guessed + answer.timing.guessed, right + answer.timing.right
                same[task] += len({tuple(answer.token_ids) for answer in answers.values()}) == 1
            say(f"round {turn} of {options.rounds}" if turn else "warm-up")
    finally:
        bench.close()
    return [
        row(task, rates[task]["off"], rates[task][options.speculate])
        | {
            "guessed": guesses[task][0],
            "right": guesses[task][1],
            "same_answers": f"{same[task]} of {options.rounds + 1}",
        }
        for task in tasks
    ]


def row(task: str, plain: list[float], guessing: list[float]) -> dict[str, Any]:
    """Both medians, and the spread of the rounds' ratios."""
    ratios = [b / a for a, b in zip(plain, guessing, strict=True)]
    return {
        "task": task,
        "plain_tok_s": statistics.median(plain),
        "guessing_tok_s": statistics.median(guessing),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The result for people."""
    yield f"{'task':8} {'plain tok/s':>12} {'guessing':>9} {'ratio':>18} {'right':>12}  same answers"
    for one in rows:
        ratio = f"{one['ratio']:.2f} ({one['spread'][0]:.2f}-{one['spread'][1]:.2f})"
        right = f"{one['right']} of {one['guessed']}"
        yield (
            f"{one['task']:8} {one['plain_tok_s']:12.1f} {one['guessing_tok_s']:9.1f} {ratio:>18} {right:>12}"
            f"  {one['same_answers']}"
        )


def main() -> None:
    """Measure and report."""
    options = parse()
    if options.speculate == "off":
        raise UsageError("'off' against 'off' says nothing", "name lookup, or a small model")
    rows = measured(options)
    settings: Mapping[str, Any] = {name: value for name, value in vars(options).items() if name != "json"}
    report({"bench": "speculation", **settings, "rows": rows}, table(rows), json_only=options.json)


if __name__ == "__main__":
    script(main)
