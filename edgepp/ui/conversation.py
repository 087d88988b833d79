"""The interactive chat: its commands, and the turns of a conversation."""

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
from edgepp.ui.keyboard import discard_typed, echo_off, keep_typed, prompt_session
from edgepp.ui.screen import Screen, say

if TYPE_CHECKING:
    from edgepp.engine.request import GenerateOptions
    from edgepp.python_api import Answer, Question
    from edgepp.ui.chat import Model

HELP = """\
/help    show this list
/reset   forget the conversation
/stats   show the time of the last answer per stage
/quit    leave; /bye, /exit and Ctrl-D do the same
Ctrl-C stops an answer. Enter sends; Alt-Enter or Ctrl-J starts a new line.
Arrow keys recall earlier lines. A line that starts with a space is never a
command."""

COMMANDS = ("/help", "/reset", "/stats", "/quit", "/bye", "/exit")
_ASK_ANYWAY = "  to send the line to the model, begin it with a space"
_LEAVE = ("/quit", "/bye", "/exit", "quit", "exit")


class UnknownCommand(Exception):  # noqa: N818 - a hint for the user, not an error
    """A line looks like a command, and there is no such command."""


def command(line: str) -> str | None:
    """The command in ``line``, one of ``COMMANDS``; None for a question.

    Raises:
        UnknownCommand: ``line`` looks like a command, and there is no such command; the message says what to do.
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
        what = f"{first} takes no text after it" if known else f"there is no command {first}; did you mean {close[0]}?"
        raise UnknownCommand(f"{what}\n{_ASK_ANYWAY}")
    if rest:
        return None
    raise UnknownCommand(f"there is no command {first}; /help lists them\n{_ASK_ANYWAY}")


@dataclass
class InteractiveChat:
    """An interactive chat; after a stage was lost, the next question opens the model again."""

    model: Model
    options: GenerateOptions
    system: str | None = None
    """The system prompt; None for none."""
    messages: list[dict[str, str]] = field(default_factory=list)
    """The conversation so far; each message has ``role`` and ``content``."""
    last: Answer | None = None
    """The last answer that did not fail; None before the first one."""

    async def run(self) -> None:
        """Read lines and answer them until the user leaves."""
        self.reset()
        say(f"{banner(self.model)}; /help lists commands", dim=True)
        session = prompt_session()
        with echo_off():
            try:
                while True:
                    line = await _read(session)
                    with keep_typed(session):
                        answer = await self._handle(line)
                    if answer is not None and answer.finish_reason == "cancelled":
                        discard_typed(session)
            except EOFError:
                say()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    async def _handle(self, line: str) -> Answer | None:
        """Run the command or answer the question in ``line``; return the answer, if there is one."""
        if not line.strip():
            return None
        try:
            name = command(line)
        except UnknownCommand as unknown:
            say(str(unknown))
            return None
        match name:
            case "/help":
                say(HELP)
            case "/reset":
                self.reset()
                say("the conversation is forgotten")
            case "/stats":
                Screen().show(stage_table(self.last) if self.last else "there is no answer yet")
            case "/quit":
                raise EOFError
            case _:
                return await self._ask(line.strip())
        return None

    async def _ask(self, question: str) -> Answer | None:
        try:
            messages = [*self.messages, {"role": "user", "content": question}]
            answer = await self._begin(messages)
            await stream(answer)
        except EdgeppError as error:
            show_error(error)
            return None
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self.last = answer
        show_logprobs(answer)
        say(summary(answer), dim=True)
        if reason := cut_off(answer, self.options):
            what, is_full = reason
            step = "type /reset to start over" if is_full else "type 'go on', or start the chat with a larger -n"
            say(f"{what}: {step}", dim=True)
        return answer

    async def _begin(self, messages: Question) -> Answer:
        from edgepp.python_api import Engine

        if isinstance(self.model, Engine) and self.model.lost is not None:
            await open_here(self.model)
        return self.model.ask(messages, self.options)


async def _read(session: PromptSession[str]) -> str:
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C clears the line
            return await session.prompt_async("> ")
