"""Chat in a terminal: answers for scripts, or a conversation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.history import InMemoryHistory

from edgepp.errors import EdgeppError
from edgepp.ui.errors import show_error
from edgepp.ui.progress import ByteProgress

if TYPE_CHECKING:
    from edgepp.api import Answer, Connection, Engine, Prompt
    from edgepp.engine.request import GenerateOptions

Model: TypeAlias = "Engine | Connection"

HELP = """\
/help    this list
/reset   forget the conversation
/stats   where the time of the last answer went, stage by stage
/quit    leave (so does Ctrl-D); Ctrl-C stops an answer"""


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
        "decode_tok_s": round(timing.decode_tok_s, 3),
        "e2e_tok_s": round(timing.e2e_tok_s, 3),
        "stages": stages,
    } | _logprobs(answer)


def _logprobs(answer: Answer) -> dict[str, Any]:
    """Each token's log-probability and its likeliest alternatives, where they were asked for."""
    if not answer.sampled:
        return {}
    return {
        "logprobs": [
            {"token": sampled.token, "logprob": sampled.logprob, "top": [list(pair) for pair in sampled.top]}
            for sampled in answer.sampled
        ]
    }


def summary(answer: Answer) -> str:
    """One line about an answer's speed."""
    timing = answer.timing
    return (
        f"{len(answer.token_ids)} tokens · first after {timing.ttft_s:.2f} s ·"
        f" {timing.decode_tok_s:.1f} token/s without it, {timing.e2e_tok_s:.1f} with it"
    )


def banner(model: Model) -> str:
    """One line about what runs where."""
    stages = model.stages
    if not stages:
        return f"{model.model} in a cluster that is still loading"
    if not stages[0].address:
        return f"{model.model} on this machine alone ({stages[0].backend})"
    places = [f"layers {s.layers} at {s.address} ({s.backend})" for s in stages]
    count = f"{len(places)} stage{'s' if len(places) > 1 else ''}"
    return f"{model.model} on {count}: {', '.join(places)}"


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
        _print({"model": model.model} | report(await answer.whole()))
        return
    click.secho(banner(model), dim=True, err=True)
    await _stream(answer)
    click.secho(summary(answer), dim=True, err=True)


async def answer_several(
    model: Model, prompt: Prompt, n: int, options: GenerateOptions, *, raw: bool = False, as_json: bool = False
) -> None:
    """Answer one prompt ``n`` times at once: numbered texts, or one JSON object with all of them."""
    choices = model.choices(prompt, n, options, raw=raw)
    whole = asyncio.gather(*(choice.whole() for choice in choices))
    if as_json:
        _print({"model": model.model, "choices": [report(choice) for choice in await whole]})
        return
    click.secho(banner(model), dim=True, err=True)
    with _ctrl_c_stops(choices):
        await whole
    for number, choice in enumerate(choices, 1):
        click.echo(f"{number}. {choice.text.strip()}")
        click.secho(summary(choice), dim=True, err=True)


def _print(found: dict[str, Any]) -> None:
    click.echo(json.dumps(found, ensure_ascii=False))


async def _stream(answer: Answer) -> None:
    """Show an answer as it comes; Ctrl-C stops it."""
    try:
        with _ctrl_c_stops([answer]):
            async for piece in answer:
                click.echo(piece, nl=False)
    finally:
        if answer.text:
            click.echo()


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


@dataclass
class Conversation:
    """An interactive chat; a model that was lost is opened anew for the next question."""

    model: Model
    options: GenerateOptions
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    last: Answer | None = None

    async def run(self) -> None:
        """Read, answer, repeat, until the user leaves."""
        self.reset()
        click.secho(f"{banner(self.model)}; /help lists commands", dim=True)
        session: PromptSession[str] = PromptSession(history=InMemoryHistory())
        try:
            while True:
                await self._handle((await _read(session)).strip())
        except EOFError:
            click.echo()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    async def _handle(self, line: str) -> None:
        match line:
            case "":
                pass
            case "/help":
                click.echo(HELP)
            case "/reset":
                self.reset()
                click.echo("forgotten")
            case "/stats":
                click.echo(stage_table(self.last) if self.last else "no answer yet")
            case "/quit":
                raise EOFError
            case _ if line.startswith("/"):
                click.echo(f"there is no command {line.split()[0]}\n{HELP}")
            case _:
                await self._ask(line)

    async def _ask(self, question: str) -> None:
        asked = [*self.messages, {"role": "user", "content": question}]
        try:
            answer = await self._begin(asked)
            await _stream(answer)
        except EdgeppError as error:
            show_error(error)
            return
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        self.last = answer
        click.secho(summary(answer), dim=True)

    async def _begin(self, asked: Prompt) -> Answer:
        from edgepp.api import Engine

        if isinstance(self.model, Engine) and self.model.lost is not None:
            await open_here(self.model)
        return self.model.ask(asked, self.options)


async def _read(session: PromptSession[str]) -> str:
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C clears the line
            return await session.prompt_async("> ")
