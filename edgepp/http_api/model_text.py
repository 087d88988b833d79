"""Text of one model: prompts, with the tools that they offer, to token ids, and the form of its answers."""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.engine.frontend import ModelFrontend
from edgepp.model.text.conversation import Conversation, EncodedPrompt, Prompt
from edgepp.tool_calls.formats import ToolFormat, format_of
from edgepp.tool_calls.tool_use import ToolUse


@dataclass(frozen=True)
class ModelText:
    """What requests need of a model's text; made once per model. Blocks while the tokenizer's process works."""

    frontend: ModelFrontend
    form: ToolFormat

    @classmethod
    def of(cls, frontend: ModelFrontend) -> ModelText:
        """The text of the model of ``frontend``."""
        return cls(frontend, format_of(frontend.tokenizer.template or None, frontend.tokenizer.control_tokens))

    def encode(self, prompt: Prompt, tool_use: ToolUse, context: int | None = None) -> EncodedPrompt:
        """The prompt as the model gets it; tools are offered in a conversation only.

        Raises:
            EdgeppError: the prompt is malformed, too long for ``context`` tokens, or the chat template refuses it.
        """
        if isinstance(prompt, Conversation):
            prompt = self.form.prepare(prompt, tool_use)
        return self.frontend.tokenizer.encode_prompt(prompt, context)

    def spell(self, token: int) -> bytes:
        """The bytes of one token's text, which may be a part of a character."""
        return self.frontend.tokenizer.bytes_of(token)
