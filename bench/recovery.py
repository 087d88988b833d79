"""The pause of answers when a stage or a node is lost or drained, its parts, and the cost of copies and logs.

    python -m bench.recovery --quick

A coordinator and three nodes run as processes on this machine, with one thread each. The script fails where an answer
is not that of an undisturbed run, token for token.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench.faults.interruptions import TokenQuestion, answers, four_streams, outcome, prompt
from bench.faults.processes import EdgeppProcess, FaultyCluster
from bench.faults.standing_costs import standing_costs
from bench.toolkit.figures import cell, table
from bench.toolkit.script import Result, ScriptArguments, count, counts, say, script
from edgepp.coordinator.client import connect_coordinator
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.request import GenerateOptions
from edgepp.errors import EdgeppError, UsageError

_PARTS = ("pauses", "drain", "cost", "accuracy")
_MOVED_S = 180.0


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", rounds=5, gen=96, prompt_tokens=256)
    parser.add_argument("--parts", default=",".join(_PARTS), help="of %(default)s")
    parser.add_argument("--lengths", type=counts, default=[100, 2000], help="tokens before a loss (%(default)s)")
    parser.add_argument("--chat", type=count, default=1000, help="tokens before a drain (%(default)s)")
    parser.add_argument("--copies", type=counts_or_zero, default=[0, 1], help="--keep-copies (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one length, one kill, two rounds, with copies")
    parser.add_argument("--timeline", action="store_true", help="print what the processes did during each pause")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(_PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    if options.quick:
        options.lengths, options.chat, options.rounds, options.copies = options.lengths[:1], 200, 2, options.copies[-1:]
    return options


def counts_or_zero(text: str) -> list[int]:
    """Numbers of copies, separated by commas, from a command line."""
    if not set(text.split(",")) <= {"0", "1"}:
        raise argparse.ArgumentTypeError(f"'{text}' is not 0, 1 or both")
    return [int(part) for part in text.split(",")]


class RecoveryTrial:
    """A cluster, and disturbances of the answers that it gives."""

    def __init__(self, cluster: FaultyCluster, marks: Path, *, shows_timeline: bool) -> None:
        self._cluster, self._marks, self._shows_timeline = cluster, marks, shows_timeline
        self.wait_whole()

    def wait_whole(self) -> None:
        """Wait until all nodes have layers and nothing is answered."""
        cluster = self._cluster
        cluster.wait("a plan with all nodes", lambda: cluster.complete() and cluster.idle())

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The stages in the coordinator's status."""
        return list(self._cluster.status()["stages"])

    def node(self, stage: int) -> EdgeppProcess:
        """The node that runs a stage."""
        name = self.stages[stage]["node"]
        return next(node for node in self._cluster.nodes if node.name == name)

    def undisturbed(self, questions: Mapping[str, TokenQuestion]) -> dict[str, list[int]]:
        """The right tokens of ``questions``.

        Raises:
            EdgeppError: an answer failed.
        """
        streams, _ = answers(questions)
        for stream in streams.values():
            if stream.error is not None:
                raise stream.error
        return {name: stream.tokens for name, stream in streams.items()}

    def disturbed(
        self, what: str, questions: Mapping[str, TokenQuestion], right: Mapping[str, Sequence[int]], at: int,
        disturb: Callable[[], None],
    ) -> dict[str, Any]:  # fmt: skip
        """The outcome of ``disturb`` after ``at`` tokens of each answer."""
        streams, since_s = answers(questions, at, disturb)
        found = {"what": what, **outcome(streams, right, since_s, self._marks)}
        say(f"{what}: {_summary(found)}")
        if self._shows_timeline:
            say(f"  ms: {found['timeline']}")
        return found

    def kill_stage(self, stage: int) -> Callable[[], None]:
        """A function that kills the process of a stage at once."""
        process = psutil.Process(int(self.stages[stage]["pid"]))
        return process.kill

    def kill_node(self, stage: int) -> tuple[EdgeppProcess, Callable[[], None]]:
        """The node of a stage, and a function that kills the node and its stage process at once."""
        node = self.node(stage)
        processes = [*node.stages, *node.tree[:1]]

        def kill() -> None:
            for process in processes:
                process.kill()

        return node, kill


def _summary(found: Mapping[str, Any]) -> str:
    streams = found["streams"].values()
    pauses = ", ".join(f"{one['pause_s']:.2f}" for one in streams)
    how = sorted({how for one in streams for how in one["how"]})
    prefilled = sum(sum(one["prefilled"]) for one in streams)
    later_s = max(one["later_gap_s"] for one in streams)
    wrong = [
        f"{name} (token {one['first_wrong']} of {one['tokens'][1]}{', ' + one['error'] if one['error'] else ''})"
        for name, one in found["streams"].items()
        if not one["right"]
    ]
    split = ", ".join(f"{name[:-2]} {seconds:.2f}" for name, seconds in found["parts"].items())
    went_on = f"pauses {pauses} s, later gaps up to {later_s:.2f} s"
    regained = f"{'+'.join(how) or 'none'}, {prefilled} positions prefilled"
    return f"{went_on}; {regained}; wrong: {', '.join(wrong) or 'none'}; {split}"


@contextmanager
def trial(options: argparse.Namespace, positions: int, *, copies: int, exact: bool) -> Iterator[RecoveryTrial]:
    """A cluster for answers of ``positions`` positions each."""
    with tempfile.TemporaryDirectory(prefix="edgepp-recovery-", ignore_cleanup_errors=True) as name, ExitStack() as own:
        folder = Path(name)
        marks = folder / "marks"
        marks.mkdir()
        os.environ["EDGEPP_MARKS"] = str(marks)
        own.callback(os.environ.pop, "EDGEPP_MARKS")
        serve = ["--max-sequences", "6", "--context", str(positions), "--keep-copies", str(copies)]
        # At default accuracy, the number of guesses follows measured times, and changes how a step is rounded.
        serve += ["--exact"] if exact else ["--speculate", "off"]
        cluster = FaultyCluster(folder, options.model, own, serve)
        try:
            yield RecoveryTrial(cluster, marks, shows_timeline=options.timeline)
        except BaseException:
            for file in sorted(folder.glob("*.log")):
                say(f"{file.name}: {file.read_text(encoding='utf-8', errors='replace')[-2000:]}")
            raise


def pauses(options: argparse.Namespace, frontend: ModelFrontend) -> Iterator[dict[str, Any]]:
    """Outcomes of the loss of each stage in turn, and of a node, under four streams."""
    at = 24
    for copies in options.copies:
        for length in options.lengths:
            questions = four_streams(frontend, max(16, length - at), 4 * at if options.quick else 8 * at)
            with trial(options, length + 16 * at + 64, copies=copies, exact=True) as one:
                right = one.undisturbed(questions)
                about = {"length": length, "keep_copies": copies}
                for stage in [1] if options.quick else range(len(one.stages)):
                    kill = one.kill_stage(stage)
                    yield about | one.disturbed(f"stage {stage} killed", questions, right, at, kill)
                    one.wait_whole()
                node, kill = one.kill_node(1)
                yield about | one.disturbed("node killed", questions, right, at, kill)
                node.start()
                one.wait_whole()


def drains(options: argparse.Namespace, frontend: ModelFrontend) -> Iterator[dict[str, Any]]:
    """Outcomes of `edgepp drain` and of Ctrl-C on a node during a chat."""
    at = 24
    question = TokenQuestion(prompt(frontend, 7, options.chat - at), GenerateOptions(12 * at, ignore_eos=True))
    for copies in options.copies:
        with trial(options, options.chat + 16 * at, copies=copies, exact=True) as one:
            right = one.undisturbed({"chat": question})
            node = one.node(1)

            def drain(name: str = node.name, *, undo: bool = False) -> None:
                with connect_coordinator() as line:
                    line.call("drain", {"node": name, "undo": undo})

            about = {"length": options.chat, "keep_copies": copies}
            yield about | one.disturbed("drain", {"chat": question}, right, at, drain)
            drain(undo=True)
            one.wait_whole()
            node = one.node(1)
            interrupt = node.process

            def stop(process: Any = interrupt) -> None:
                process.send_signal(signal.SIGINT)

            yield about | one.disturbed("Ctrl-C", {"chat": question}, right, at, stop)
            interrupt.wait(_MOVED_S)


def accuracies(options: argparse.Namespace, frontend: ModelFrontend) -> Iterator[dict[str, Any]]:
    """Outcomes of the loss of each stage under one stream at default accuracy, with copies.

    Each stage has a question of its own, so that no answer uses keys and values of an earlier one, and the prompts are
    one chunk, so that they are computed in the same way.
    """
    at, stages = 32, 3
    questions = {
        stage: {"plain": TokenQuestion(prompt(frontend, stage, 24), GenerateOptions(4 * at, ignore_eos=True))}
        for stage in range(stages)
    }
    with trial(options, 512, copies=1, exact=False) as one:
        right = {stage: one.undisturbed(asked) for stage, asked in questions.items()}
    with trial(options, 512, copies=1, exact=False) as one:
        for stage, asked in questions.items():
            kill = one.kill_stage(stage)
            yield one.disturbed(f"stage {stage} killed, default accuracy", asked, right[stage], at, kill)
            one.wait_whole()


def measured(options: argparse.Namespace) -> Result:
    """Measure the parts that were asked for."""
    frontend = ModelFrontend.open(options.model, whole=True)
    if "pauses" in options.parts and max(options.lengths) + 512 > frontend.checkpoint.context:
        raise UsageError(f"the model's context is {frontend.checkpoint.context} tokens", "lower --lengths")
    result: dict[str, Any] = {}
    for name, run in (("pauses", pauses), ("drain", drains), ("accuracy", accuracies)):
        if name in options.parts:
            result[name] = list(run(options, frontend))
    if "cost" in options.parts:
        result["cost"] = standing_costs(options, frontend)
    return result


def _outcomes(result: Result) -> Iterator[Mapping[str, Any]]:
    for name in ("pauses", "drain", "accuracy"):
        yield from result.get(name, ())


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    rows = []
    for one in _outcomes(result):
        seconds = [stream["pause_s"] for stream in one["streams"].values()]
        how = sorted({how for stream in one["streams"].values() for how in stream["how"]})
        wrong = sum(not stream["right"] for stream in one["streams"].values())
        rows.append(
            [
                one["what"],
                str(one.get("length", "")),
                str(one.get("keep_copies", 1)),
                f"{statistics.median(seconds):.2f}",
                f"{max(seconds):.2f}",
                "+".join(how),
                str(wrong),
                *(f"{part:.2f}" for part in one["parts"].values()),
            ]
        )
    if rows:
        split = [name[:-2] for name in next(iter(_outcomes(result)))["parts"]]
        yield from table(["disturbance", "tokens", "copies", "median s", "max s", "how", "wrong", *split], rows)
    if cost := result.get("cost"):
        rates = ("prefill_tokens_per_s", "decode_tokens_per_s")
        yield from table(
            ["stages with", *rates],
            [[name, *(cell(one, rate) for rate in rates)] for name, one in cost["rates"].items()],
        )
        for name, ratio in cost["ratios"].items():
            yield f"{name}: decode {cell(ratio, 'decode')}, prefill {cell(ratio, 'prefill')}"
        yield ", ".join(f"{name} {value:.0f}" for name, value in cost["bytes_per_token"].items())


def faults(_options: argparse.Namespace, result: Result) -> EdgeppError | None:
    """Error of a run with a wrong answer; None without one."""
    wrong = [
        f"{one['what']}: {name}: {stream['error'] or 'other tokens'}"
        for one in _outcomes(result)
        for name, stream in one["streams"].items()
        if not stream["right"]
    ]
    return EdgeppError(f"{len(wrong)} wrong answers: {'; '.join(wrong)[:1000]}") if wrong else None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    script("recovery", parse, measured, lines, faults)
