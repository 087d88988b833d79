"""Text of one model: prompts, with the tools that they offer, to token ids, and the form of its answers."""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.engine.frontend import ModelFrontend
from edgepp.errors import EdgeppError
from edgepp.model.text.conversation import Conversation, EncodedPrompt, Prompt
from edgepp.tool_calls.formats import ToolFormat, format_of
from edgepp.tool_calls.tool_use import ToolUse


@dataclass(frozen=True)
class ModelText:
    """Tokenizer and tool format of a model, made once per model. Calls block while the tokenizer's process works."""

    frontend: ModelFrontend
    form: ToolFormat

    @classmethod
    def of(cls, frontend: ModelFrontend) -> ModelText:
        """The text of the model of ``frontend``."""
        tokenizer = frontend.tokenizer

        def render(conversation: Conversation) -> str | None:
            try:
                return tokenizer.decode(tokenizer.encode_prompt(conversation).ids)
            except EdgeppError:
                return None  # the template refuses the conversation

        return cls(frontend, format_of(tokenizer.template or None, tokenizer.control_tokens, render))

    def encode(
        self, prompt: Prompt, tool_use: ToolUse, context: int, owner: str, *, answered: bool = True
    ) -> EncodedPrompt:
        """The encoded prompt of ``owner``; tools are offered in a conversation only.

        ``answered`` says whether the prompt must leave room for an answer; if not, a prompt is refused only if it is
        much longer than ``context``.

        Raises:
            EdgeppError: the prompt is malformed, too long for ``context`` tokens, or the chat template refuses it.
        """
        if isinstance(prompt, Conversation):
            prompt = self.form.prepare(prompt, tool_use)
        return self.frontend.tokenizer.encode_prompt(prompt, context, owner, answered=answered)

    def spell(self, token: int) -> bytes:
        """The bytes of one token's text, which may be a part of a character."""
        return self.frontend.tokenizer.bytes_of(token)
