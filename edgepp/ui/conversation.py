"""An interactive chat: what a line means, and the turns of a conversation."""

from __future__ import annotations

import contextlib
import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession

from edgepp.errors import EdgeppError
from edgepp.ui.chat import (
    banner,
    cut_off,
    open_here,
    show_logprobs,
    stage_table,
    stream,
    summary,
)
from edgepp.ui.errors import show_error
from edgepp.ui.keyboard import drop_aside, prompt_session, set_aside, unechoed
from edgepp.ui.screen import Screen, say

if TYPE_CHECKING:
    from edgepp.api import Answer, Prompt
    from edgepp.engine.request import GenerateOptions
    from edgepp.ui.chat import Model

HELP = """\
/help    this list
/reset   forget the conversation
/stats   where the time of the last answer went, stage by stage
/quit    leave (so do /bye, /exit and Ctrl-D); Ctrl-C stops an answer
Enter sends; Alt-Enter or Ctrl-J begins a new line; arrow keys recall earlier lines
a line that begins with a space is always a question"""

COMMANDS = ("/help", "/reset", "/stats", "/quit", "/bye", "/exit")
_ASK_IT = "  to ask it as a question, begin the line with a space"
_LEAVE = ("/quit", "/bye", "/exit", "quit", "exit")


class UnknownCommand(Exception):  # noqa: N818 - not an error of the chat, but an answer to what was typed
    """A line looks like a command and is none."""


def command(line: str) -> str | None:
    """The command that ``line`` is, one of ``COMMANDS``; None where it is a question.

    Raises:
        UnknownCommand: it looks like a command, and a sentence says what to do.
    """
    text = line.strip()
    if text in _LEAVE:
        return "/quit"
    if text in COMMANDS:
        return text
    first, _, rest = text.partition(" ")
    if line.startswith(" ") or not first.startswith("/") or not first[1:].isalpha():
        return None
    if close := difflib.get_close_matches(first.lower(), COMMANDS, n=1, cutoff=0.75):
        known = first == close[0]
        what = f"{first} stands alone" if known else f"there is no command {first}; did you mean {close[0]}?"
        raise UnknownCommand(f"{what}\n{_ASK_IT}")
    if rest:
        return None
    raise UnknownCommand(f"there is no command {first}; /help lists them\n{_ASK_IT}")


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
        say(f"{banner(self.model)}; /help lists commands", dim=True)
        session = prompt_session()
        with unechoed():
            try:
                while True:
                    line = await _read(session)
                    with set_aside(session):
                        answer = await self._handle(line)
                    if answer is not None and answer.finish_reason == "cancelled":
                        drop_aside(session)
            except EOFError:
                say()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    async def _handle(self, line: str) -> Answer | None:
        """Do what a line says; the answer, where it was a question that got one."""
        if not line.strip():
            return None
        try:
            wanted = command(line)
        except UnknownCommand as unknown:
            say(str(unknown))
            return None
        match wanted:
            case "/help":
                say(HELP)
            case "/reset":
                self.reset()
                say("forgotten")
            case "/stats":
                Screen().show(stage_table(self.last) if self.last else "no answer yet")
            case "/quit":
                raise EOFError
            case _:
                return await self._ask(line.strip())
        return None

    async def _ask(self, question: str) -> Answer | None:
        try:
            asked = [*self.messages, {"role": "user", "content": question}]
            answer = await self._begin(asked)
            await stream(answer)
        except EdgeppError as error:
            show_error(error)
            return None
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        self.last = answer
        show_logprobs(answer)
        say(summary(answer), dim=True)
        if reason := cut_off(answer, self.options):
            what, is_full = reason
            step = "/reset makes room" if is_full else "ask it to go on, or start the chat with a larger -n"
            say(f"{what}: {step}", dim=True)
        return answer

    async def _begin(self, asked: Prompt) -> Answer:
        from edgepp.api import Engine

        if isinstance(self.model, Engine) and self.model.lost is not None:
            await open_here(self.model)
        return self.model.ask(asked, self.options)


async def _read(session: PromptSession[str]) -> str:
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C clears the line
            return await session.prompt_async("> ")
