"""Chat in a terminal: one answer for scripts, or a conversation."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.history import InMemoryHistory

from edgepp.engine.asking import Asked, Model
from edgepp.engine.request import GenerateOptions
from edgepp.errors import EdgeppError, StageLost

HELP = """\
/help    this list
/reset   forget the conversation
/stats   where the time of the last answer went, stage by stage
/quit    leave (so does Ctrl-D); Ctrl-C stops an answer"""


def report(model: Model, answer: Asked, text: str) -> dict[str, Any]:
    """What ``--json`` prints for one answer; ``layers`` are half-open, times in seconds."""
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
        "model": model.model,
        "text": text,
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


def _logprobs(answer: Asked) -> dict[str, Any]:
    """Each token's log-probability and its likeliest alternatives, where they were asked for."""
    sampled = answer.sampled[: len(answer.token_ids)]
    if not sampled:
        return {}
    return {
        "logprobs": [{"token": s.token, "logprob": s.logprob, "top": [list(pair) for pair in s.top]} for s in sampled]
    }


def summary(answer: Asked) -> str:
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


def stage_table(answer: Asked) -> str:
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


def answer_once(model: Model, prompt: str | list[dict[str, str]], options: GenerateOptions, *, as_json: bool) -> None:
    """Answer one prompt: streamed text with a line about speed on standard error, or one JSON object."""
    answer = model.ask(prompt, options)
    if as_json:
        text = "".join(answer)
        click.echo(json.dumps(report(model, answer, text), ensure_ascii=False))
        return
    click.secho(banner(model), dim=True, err=True)
    _stream(answer)
    click.secho(summary(answer), dim=True, err=True)


def _stream(answer: Asked) -> str:
    """Show an answer as it comes; Ctrl-C stops it. The text that was shown."""
    pieces: list[str] = []
    try:
        for piece in _interruptible(answer):
            pieces.append(piece)
            click.echo(piece, nl=False)
    finally:
        click.echo()
    return "".join(pieces)


def _interruptible(answer: Asked) -> Iterator[str]:
    try:
        yield from answer
    except KeyboardInterrupt:
        answer.cancel()
        yield from answer  # what came before the cancellation, up to its end


@dataclass
class Conversation:
    """An interactive chat; a model that was lost is opened anew for the next question."""

    open_model: Callable[[], Model]
    options: GenerateOptions
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    last: Asked | None = None

    def run(self) -> None:
        """Read, answer, repeat, until the user leaves."""
        self.reset()
        model = self.open_model()
        try:
            click.secho(f"{banner(model)}; /help lists commands", dim=True)
            session: PromptSession[str] = PromptSession(history=InMemoryHistory())
            while (line := _read(session)) is not None:
                model = self._handle(line.strip(), model)
        except EOFError:
            click.echo()
        finally:
            model.close()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def _handle(self, line: str, model: Model) -> Model:
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
                return self._ask(line, model)
        return model

    def _ask(self, question: str, model: Model) -> Model:
        asked = [*self.messages, {"role": "user", "content": question}]
        try:
            if model.lost is not None:
                model.close()
                model = self.open_model()
            answer = model.ask(asked, self.options)
            text = _stream(answer)
        except EdgeppError as error:
            show_error(error)
            return model
        self.messages = [*asked, {"role": "assistant", "content": text}]
        self.last = answer
        click.secho(summary(answer), dim=True)
        return model


def _read(session: PromptSession[str]) -> str | None:
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C clears the line
            return session.prompt("> ")


def show_error(error: EdgeppError) -> None:
    """One sentence and a next step, on standard error."""
    lead = "lost a stage: " if isinstance(error, StageLost) else ""
    click.secho(f"error: {lead}{error}", fg="red", err=True)
    if error.hint:
        click.echo(f"  try: {error.hint}", err=True)
