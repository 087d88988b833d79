"""Answers on a terminal and for scripts; `conversation` is the interactive chat."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from edgepp.errors import EdgeppError
from edgepp.printable import one_line
from edgepp.ui.errors import show_error
from edgepp.ui.progress import ByteProgress
from edgepp.ui.screen import Rows, Screen, say, say_json
from edgepp.ui.waiting import shown_waiting

if TYPE_CHECKING:
    from edgepp.api import Answer, Connection, Engine, Prompt
    from edgepp.engine.request import Constraint, GenerateOptions

Model: TypeAlias = "Engine | Connection"


async def open_here(engine: Engine, *, quiet: bool = False) -> None:
    """Load a model on this machine, anew if it was lost, with a bar for each thing that takes long.

    Raises:
        EdgeppError: one sentence about what keeps it from running.
    """
    with ByteProgress(quiet=quiet) as progress:
        await engine.open(progress)


def report(answer: Answer) -> dict[str, Any]:
    """What ``--json`` prints of an answer; ``layers`` are half-open, times in seconds."""
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
    """Each token's log-probability and its likeliest alternatives, where they were asked for."""
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
    """A line a token with its probability and its alternatives, where they were asked for."""
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
    """One line about an answer's speed."""
    timing = answer.timing
    if not answer.token_ids and answer.finish_reason == "cancelled":
        return "stopped before the answer began"
    then = f" · then {timing.decode_tokens_per_s:.1f} token/s" if timing.decode_tokens_per_s else ""
    return f"{len(answer.token_ids)} tokens · first after {timing.ttft_s:.2f} s{then}"


def cut_off(answer: Answer, options: GenerateOptions) -> tuple[str, bool] | None:
    """What cut an answer off before its end, and whether the context is full; None where nothing did but Ctrl-C."""
    if answer.finish_reason != "length" or options.ignore_eos:
        return None
    what = f"cut off after {len(answer.token_ids)} tokens"
    if len(answer.token_ids) < options.max_tokens:
        return f"{what}, since the model's context is full", True
    return what, False


def more_room(is_full: bool) -> str:
    """What lets an answer come to its end."""
    return "shorten the prompt" if is_full else "give a larger -n"


def incomplete(answer: Answer, options: GenerateOptions) -> EdgeppError | None:
    """Why an answer that is held to a schema, expression or grammar did not come to its end; None where it did."""
    held = options.constraint
    if held is None or answer.finish_reason == "stop" or _is_complete(answer.text, held):
        return None
    what = {"json_schema": "the JSON schema", "json": "JSON"}.get(held.kind, f"the {held.kind}")
    how, is_full = cut_off(answer, options) or ("stopped", False)
    return EdgeppError(f"the answer does not fit {what}: it was {how}", more_room(is_full))


def _is_complete(text: str, held: Constraint) -> bool:
    """Whether a text that was cut off fits nevertheless, as far as that can be told."""
    try:
        if held.kind == "regex":
            return re.fullmatch(held.text, text) is not None
        if held.kind in ("json_schema", "json"):
            json.loads(text)
            return True
    except (ValueError, re.error, RecursionError):
        pass
    return False


def banner(model: Model) -> str:
    """One line about what runs where."""
    stages, name = model.stages, one_line(model.model)
    if not stages:
        return f"{name} in a cluster that is still loading"
    if not stages[0].address:
        return f"{name} on this machine alone ({stages[0].backend})"
    places = [f"layers {s.layers} at {s.address} ({s.backend})" for s in stages]
    count = f"{len(places)} stage{'s' if len(places) > 1 else ''}"
    return f"{name} on {count}: {', '.join(places)}"


def stage_table(answer: Answer) -> str:
    """A line a stage: its range, place, and share of the last answer's time."""
    lines = []
    for stage, times in zip(answer.stages, answer.timing.stages, strict=True):
        lines.append(
            f"{stage} · {stage.backend} on {stage.device} · prefill {times.prefill_s:.2f} s ·"
            f" decode {times.decode_s:.2f} s · wire {times.wire_s:.2f} s"
        )
    timing = answer.timing
    lines.append(
        f"{timing.reused} of the prompt's {answer.prompt_tokens} tokens were still there ·"
        f" {timing.right} of {timing.guessed} guessed tokens were right"
    )
    return "\n".join(lines)


async def answer_once(
    model: Model, prompt: Prompt, options: GenerateOptions, *, raw: bool = False, as_json: bool = False
) -> None:
    """Answer one prompt: streamed text with a line about speed on standard error, or one JSON object."""
    answer = model.ask(prompt, options, raw=raw)
    if as_json:
        async with shown_waiting([answer]):
            await answer.whole()
        _say_whole({"model": model.model} | report(answer), incomplete(answer, options))
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


async def answer_several(
    model: Model, prompt: Prompt, n: int, options: GenerateOptions, *, raw: bool = False, as_json: bool = False
) -> None:
    """Answer one prompt ``n`` times at once: numbered texts, or one JSON object with all of them."""
    choices = model.choices(prompt, n, options, raw=raw)

    async def whole() -> None:
        async with shown_waiting(choices):
            await asyncio.gather(*(choice.whole() for choice in choices))

    if as_json:
        await whole()
        reports = [report(choice) for choice in choices]
        faults = [fault for choice in choices if (fault := incomplete(choice, options))]
        _say_whole({"model": model.model, "choices": reports}, next(iter(faults), None))
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


def _say_whole(form: dict[str, Any], fault: EdgeppError | None) -> None:
    """One JSON object; where its answer is incomplete it says so itself, and the command ends with status 1."""
    say_json(form | ({"error": str(fault)} if fault else {}))
    if fault:
        show_error(fault)
        raise SystemExit(1)


def _say_cut_off(answer: Answer, options: GenerateOptions) -> None:
    if reason := cut_off(answer, options):
        say(f"{reason[0]}: for all of it {more_room(reason[1])}", dim=True, err=True)


async def stream(answer: Answer) -> None:
    """Show an answer as it comes; Ctrl-C stops it."""
    try:
        async with shown_waiting([answer]) as note:
            with _ctrl_c_stops([answer]):
                async for piece in answer:
                    note.clear()
                    say(piece, nl=False)
    finally:
        if answer.text:
            say()


@contextlib.contextmanager
def _ctrl_c_stops(answers: Sequence[Answer]) -> Iterator[None]:
    """Ctrl-C cancels the answers, which then end with what has come; a second one means what it always does."""
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
