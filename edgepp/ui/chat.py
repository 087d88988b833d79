"""Answers printed on a terminal or as JSON; ``conversation`` has the interactive chat."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgepp.errors import EdgeppError
from edgepp.printable import one_line
from edgepp.ui.errors import show_error
from edgepp.ui.progress import ByteProgress
from edgepp.ui.screen import Rows, Screen, counted, say, say_json
from edgepp.ui.waiting import shown_waiting

if TYPE_CHECKING:
    from edgepp.engine.request import Constraint, GenerateOptions
    from edgepp.python_api import Answer, Connection, Engine, Question

Model: TypeAlias = "Engine | Connection"


async def open_here(engine: Engine, *, quiet: bool = False) -> None:
    """Open ``engine``, with progress bars for what takes longer than a second.

    Raises:
        EdgeppError: the model cannot be downloaded, loaded or split.
    """
    with ByteProgress(quiet=quiet) as progress:
        await engine.open(progress)


def report(answer: Answer) -> dict[str, Any]:
    """The JSON object of an answer; ``layers`` are half-open, names in ``_s`` are seconds."""
    timing = answer.timing
    stages = [
        {
            "index": stage.index,
            "layers": [stage.layers.start, stage.layers.stop],
            "node": stage.node,
            "address": stage.address,
            "pid": stage.pid,
            "backend": stage.backend,
            "device": stage.device,
            "prefill_s": round(times.prefill_s, 6),
            "compute_s": round(times.prefill_s + times.decode_s, 6),
            "wire_s": round(times.wire_s, 6),
        }
        for stage, times in zip(answer.stages, timing.stages, strict=True)
    ]
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "reused_tokens": timing.reused,
        "guessed_tokens": timing.guessed,
        "right_tokens": timing.right,
        "completion_tokens": len(answer.token_ids),
        "ttft_s": round(timing.ttft_s, 6),
        "decode_tokens_per_s": round(timing.decode_tokens_per_s, 3),
        "e2e_tokens_per_s": round(timing.e2e_tokens_per_s, 3),
        "stages": stages,
    } | _logprobs(answer)


def _logprobs(answer: Answer) -> dict[str, Any]:
    """Log-probabilities of each token and its likeliest alternatives, if requested."""
    if not answer.sampled:
        return {}

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": token, "text": answer.spelled.get(token, ""), "logprob": logprob}

    return {
        "logprobs": [
            entry(sampled.token, sampled.logprob) | {"top": [entry(*pair) for pair in sampled.top]}
            for sampled in answer.sampled
        ]
    }


def show_logprobs(answer: Answer) -> None:
    """Print one line per token with its probability and its alternatives, if requested."""
    if not answer.sampled:
        return
    table = Rows("TOKEN", ">PROBABILITY", "LIKELIEST")
    for sampled in answer.sampled:
        likeliest = " · ".join(f"{_quoted(answer, token)} {_percent(value)}" for token, value in sampled.top)
        table.add_row(_quoted(answer, sampled.token), _percent(sampled.logprob), likeliest)
    Screen().show(table)


def _quoted(answer: Answer, token: int) -> str:
    return json.dumps(answer.spelled.get(token, f"<{token}>"), ensure_ascii=False)


def _percent(logprob: float | None) -> str:
    return "" if logprob is None else f"{100 * math.exp(logprob):.1f} %"


def summary(answer: Answer) -> str:
    """One line about the length and speed of an answer."""
    timing = answer.timing
    if not answer.token_ids and answer.finish_reason == "cancelled":
        return "stopped before the first token"
    rate = f" · then {timing.decode_tokens_per_s:.1f} token/s" if timing.decode_tokens_per_s else ""
    return f"{counted(len(answer.token_ids), 'token')} · first after {timing.ttft_s:.2f} s{rate}"


def cut_off(answer: Answer, options: GenerateOptions) -> tuple[str, bool] | None:
    """Reason why an answer was cut off, and whether the context is full; None for a whole answer, or after Ctrl-C."""
    if answer.finish_reason != "length" or options.ignore_eos:
        return None
    what = f"cut off after {counted(len(answer.token_ids), 'token')}"
    if len(answer.token_ids) < options.max_tokens:
        return f"{what}, because the context of the model is full", True
    return what, False


def more_room(is_full: bool) -> str:
    """The next step after an answer that was cut off."""
    return "shorten the prompt" if is_full else "give a larger -n"


def incomplete(answer: Answer, options: GenerateOptions) -> EdgeppError | None:
    """The error of a constrained answer that ended before it satisfied its constraint; None for other answers."""
    constraint = options.constraint
    if constraint is None or answer.finish_reason == "stop" or _is_complete(answer.text, constraint):
        return None
    what = {"json_schema": "the JSON schema", "json": "JSON"}.get(constraint.kind, f"the {constraint.kind}")
    how, is_full = cut_off(answer, options) or ("stopped", False)
    return EdgeppError(f"the answer does not fit {what}, because it was {how}", more_room(is_full))


def _is_complete(text: str, constraint: Constraint) -> bool:
    """Whether a text that was cut off satisfies ``constraint`` nevertheless; False for a grammar."""
    try:
        if constraint.kind == "regex":
            return re.fullmatch(constraint.text, text) is not None
        if constraint.kind in ("json_schema", "json"):
            json.loads(text)
            return True
    except (ValueError, re.error, RecursionError):
        pass
    return False


def banner(model: Model) -> str:
    """One line about the model and its stages."""
    stages, name = model.stages, one_line(model.model)
    if not stages:
        return f"{name} on a cluster that is still loading"
    if not stages[0].address:
        return f"{name} on this machine ({stages[0].backend})"
    stage_texts = [f"layers {s.layers} at {s.address} ({s.backend})" for s in stages]
    count = f"{len(stages)} stage{'s' if len(stages) > 1 else ''}"
    return f"{name} on {count}: {', '.join(stage_texts)}"


def stage_table(answer: Answer) -> str:
    """One line per stage with layers, node, backend and seconds of an answer; then reused and guessed tokens."""
    lines = []
    for stage, times in zip(answer.stages, answer.timing.stages, strict=True):
        lines.append(
            f"{stage} · {stage.backend} on {stage.device} · prefill {times.prefill_s:.2f} s ·"
            f" decode {times.decode_s:.2f} s · wire {times.wire_s:.2f} s"
        )
    timing = answer.timing
    lines.append(
        f"{timing.reused} of {answer.prompt_tokens} prompt tokens reused from the KV cache ·"
        f" {timing.right} of {timing.guessed} guessed tokens right"
    )
    return "\n".join(lines)


async def answer_once(
    model: Model, prompt: Question, options: GenerateOptions, *, raw: bool = False, as_json: bool = False
) -> Answer:
    """Print one answer: streamed text, with its speed on standard error, or one JSON object; returns the answer.

    Raises:
        EdgeppError: the answer cannot begin, failed, or does not satisfy its constraint.
    """
    answer = model.ask(prompt, options, raw=raw)
    if as_json:
        async with shown_waiting([answer]):
            await answer.whole()
        _say_answers({"model": model.model} | report(answer), incomplete(answer, options))
    else:
        say(banner(model), dim=True, err=True)
        await stream(answer)
        if not answer.token_ids and answer.finish_reason == "cancelled":
            raise KeyboardInterrupt
        show_logprobs(answer)
        say(summary(answer), dim=True, err=True)
        _say_cut_off(answer, options)
        if fault := incomplete(answer, options):
            raise fault
    return answer


async def write_trace(model: Model, answer: Answer, file: str) -> None:
    """Write the trace of an answer that has ended, and say on standard error where its time went.

    Raises:
        EdgeppError: no trace is kept, or the file cannot be written.
    """
    from edgepp.ui import trace as ui

    trace = await model.trace(answer.request_id)
    ui.write(trace, Path(file))
    Screen(stderr=True).show(*ui.tables(trace))
    say(f"written to {file}: open it at https://ui.perfetto.dev", dim=True, err=True)


async def answer_several(
    model: Model, prompt: Question, n: int, options: GenerateOptions, *, raw: bool = False, as_json: bool = False
) -> list[Answer]:
    """Print ``n`` answers to one prompt, computed at once: numbered texts, or one JSON object; returns the answers.

    Raises:
        EdgeppError: an answer cannot begin, failed, or does not satisfy its constraint.
    """
    choices = model.choices(prompt, n, options, raw=raw)

    async def whole() -> None:
        async with shown_waiting(choices):
            await asyncio.gather(*(choice.whole() for choice in choices))

    if as_json:
        await whole()
        reports = [report(choice) for choice in choices]
        faults = [fault for choice in choices if (fault := incomplete(choice, options))]
        _say_answers({"model": model.model, "choices": reports}, next(iter(faults), None))
    else:
        say(banner(model), dim=True, err=True)
        with _ctrl_c_stops(choices):
            await whole()
        for number, choice in enumerate(choices, 1):
            say(f"{number}. {choice.text.strip()}")
            show_logprobs(choice)
            say(summary(choice), dim=True, err=True)
            _say_cut_off(choice, options)
        for choice in choices:
            if fault := incomplete(choice, options):
                raise fault
    return choices


def _say_answers(answers: dict[str, Any], fault: EdgeppError | None) -> None:
    """Print one JSON object; with a ``fault``, add it as ``error`` and end the command with status 1."""
    say_json(answers | ({"error": str(fault)} if fault else {}))
    if fault:
        show_error(fault)
        raise SystemExit(1)


def _say_cut_off(answer: Answer, options: GenerateOptions) -> None:
    if reason := cut_off(answer, options):
        say(f"{reason[0]}: {more_room(reason[1])} for the rest", dim=True, err=True)


async def stream(answer: Answer) -> None:
    """Print an answer as it comes; Ctrl-C stops the answer. Raises ``EdgeppError`` if the answer fails."""
    try:
        async with shown_waiting([answer]) as note:
            with _ctrl_c_stops([answer]):
                async for piece in answer:
                    note.clear()
                    note.beside_text = True
                    say(piece, nl=False)
    finally:
        if answer.text:
            say()


@contextlib.contextmanager
def _ctrl_c_stops(answers: Sequence[Answer]) -> Iterator[None]:
    """Cancel the answers at the first Ctrl-C; they end with the text so far. A second Ctrl-C has its usual effect."""
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)

    def cancel(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        for answer in answers:
            loop.call_soon_threadsafe(answer.cancel)

    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
