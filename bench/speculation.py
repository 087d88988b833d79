"""Speculation: token rates with and without guesses, over the same stage processes.

    python -m bench.speculation --model smollm2-135m --delay-ms 10 --rounds 5
    python -m bench.speculation --delay-ms 0 --speculate lookup
    python -m bench.speculation --oracle 0.5,0.7,0.9 --stages 2 --threads 1

Four tasks: copy a text with small edits, where guesses are right; answer a question greedily; sample a story, where few
guesses are right; and sample after a random prompt, where none are right. Two pipelines, with and without guesses, stay
open over the same stages, behind links with a delay if there is one, and answer in turn.

With --oracle guesses come from the answer without guesses, of which the given share is right, and cost nothing. The
pipeline is compared with one process without guesses, and with the event model of ``toolkit/guess_model``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench import oracle_rows
from bench.toolkit.figures import interleave, prompt, ratio, spread_text, table
from bench.toolkit.local import stage_processes
from bench.toolkit.questions import QUESTIONS
from bench.toolkit.script import Result, ScriptArguments, count, script
from bench.toolkit.slow_link import SlowLink
from edgepp.benchmark.prompts import words
from edgepp.benchmark.report import Spread
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.stage_handshake import Endpoint
from edgepp.engine.text_stream import TextStream
from edgepp.errors import UsageError
from edgepp.layer_range import split_evenly
from edgepp.model.fetch import fetch
from edgepp.model.text.conversation import Conversation
from edgepp.model.weights.checkpoint import Checkpoint


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "stages", "threads", "rounds", "backend", gen=192, prompt_tokens=64)
    parser.add_argument("--oracle", type=shares, help="shares of right guesses of an oracle, as 0.5,0.7,0.9")
    parser.add_argument("--delay-ms", type=float, default=10.0, help="of every link, each way (%(default)s)")
    parser.add_argument("--speculate", default="lookup", help="what guesses: lookup, or a small model (%(default)s)")
    parser.add_argument("--words", type=count, default=100, help="of the text to copy (%(default)s)")
    parser.add_argument("--exact", action="store_true", help="float32 arithmetic, in which answers are the same")
    return parser.parse_args()


def shares(text: str) -> list[float]:
    """Different numbers above 0 and up to 1, separated by commas, from a command line."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or not all(0 < share <= 1 for share in found):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of shares above 0 and up to 1")
    return found


class TwoPipelines:
    """Stage processes behind slow links, and two pipelines over them, with and without guesses. Must be closed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        folder = fetch(options.model)
        checkpoint = Checkpoint.open(folder)
        self._vocabulary = checkpoint.vocab_size
        self._owned = ExitStack()
        try:
            found = stage_processes(
                folder,
                split_evenly(checkpoint.num_layers, options.stages),
                SlowLink("slow", options.delay_ms),
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
        """Copy a text with some misspelt words, greedily, until the model ends the answer."""
        text = list(words()[turn * 7 : turn * 7 + self._options.words])
        text[10::25] = [word[::-1] for word in text[10::25]]
        question = f"{' '.join(text)}\n\nCorrect the spelling of the text above and write out the whole text."
        options = GenerateOptions(self._options.gen)
        return pipeline.ask(Conversation.of(question), options, owner=str(turn))

    def chat(self, pipeline: Pipeline, turn: int) -> TextStream:
        """Answer a question greedily."""
        question = Conversation.of(QUESTIONS[turn % len(QUESTIONS)])
        return pipeline.ask(question, GenerateOptions(self._options.gen), owner=str(turn))

    def story(self, pipeline: Pipeline, turn: int) -> TextStream:
        """Sample a story at temperature 1, which repeats a phrase sometimes."""
        sampling = SamplingOptions(temperature=1.0, seed=turn)
        options = GenerateOptions(self._options.gen, ignore_eos=True, sampling=sampling)
        return pipeline.ask(Conversation.of("Tell a story about a lighthouse."), options, owner=str(turn))

    def random(self, pipeline: Pipeline, turn: int) -> TextStream:
        """Sample an answer to a random prompt, at a high temperature."""
        ids = prompt(self._vocabulary, self._options.prompt_tokens, turn)
        sampling = SamplingOptions(temperature=1.5, seed=turn)
        request = pipeline.engine.submit(ids, GenerateOptions(self._options.gen, ignore_eos=True, sampling=sampling))
        return TextStream(pipeline.engine, request, pipeline.tokenizer.detokenizer())

    def close(self) -> None:
        """Close the pipelines and end the stages."""
        self._owned.close()


Task = Callable[[Pipeline, int], TextStream]


def measured(options: argparse.Namespace) -> Result:
    """One row per acceptance of the oracle, or one per task."""
    return tasks_measured(options) if options.oracle is None else oracle_rows.measured(options)


def tasks_measured(options: argparse.Namespace) -> Result:
    """One row per task: both rates, their ratio per round, and the number of right guesses."""
    if options.speculate == "off":
        raise UsageError("--speculate off leaves nothing to compare", "name lookup, or a small model")
    both = TwoPipelines(options)
    tasks: dict[str, Task] = {"copy": both.copy, "chat": both.chat, "story": both.story, "random": both.random}

    same = dict.fromkeys(tasks, 0)

    def answers(task: str, turn: int) -> list[TextStream]:
        """Answers of two pipelines: without guesses, and with guesses."""
        found = []
        for pipeline in both.pipelines.values():
            found.append(tasks[task](pipeline, turn))
            for _ in found[-1]:
                pass
        same[task] += found[0].token_ids == found[1].token_ids
        return found

    try:
        rounds = interleave({task: partial(answers, task) for task in tasks}, options.rounds)
    finally:
        both.close()
    asked = options.rounds + 1  # the warm-up round too
    return {"rows": [row(task, found) | {"same_answers": f"{same[task]} of {asked}"} for task, found in rounds.items()]}


def row(task: str, rounds: Sequence[Sequence[TextStream]]) -> dict[str, Any]:
    """Both medians, the ratio per round, and the numbers of guesses."""
    plain, guessing = ([answers[which].timing for answers in rounds] for which in (0, 1))
    rates = [[timing.decode_tokens_per_s for timing in timings] for timings in (plain, guessing)]
    return {
        "task": task,
        "plain_tokens_per_s": statistics.median(rates[0]),
        "guessing_tokens_per_s": statistics.median(rates[1]),
        **ratio(Spread.of_ratios(rates[1], rates[0])),
        "guessed": sum(timing.guessed for timing in guessing),
        "right": sum(timing.right for timing in guessing),
    }


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    if result["oracle"] is not None:
        yield from oracle_rows.lines(result)
        return
    headings = ("task", "plain tok/s", "guessing", "ratio", "right", "same answers")
    yield from table(headings, [_cells(one) for one in result["rows"]])


def _cells(one: Result) -> tuple[str, ...]:
    return (
        str(one["task"]),
        f"{one['plain_tokens_per_s']:.1f}",
        f"{one['guessing_tokens_per_s']:.1f}",
        spread_text(one["ratio"], one["spread"]),
        f"{one['right']} of {one['guessed']}",
        str(one["same_answers"]),
    )


if __name__ == "__main__":
    script("speculation", parse, measured, lines)
