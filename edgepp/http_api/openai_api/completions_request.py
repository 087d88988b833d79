"""The body of a legacy completion, decoded into one ``GenerationRequest`` per prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, TypeAlias

from msgspec import Meta
from starlette.requests import Request

from edgepp.http_api.endpoint import owner, request_id
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import GenerationRequest
from edgepp.http_api.model_service import ServedModel
from edgepp.http_api.openai_api.sampling import NumChoices, SamplingBody, options_of
from edgepp.model.text.conversation import Prompt

MAX_PROMPTS = 64
DEFAULT_MAX_TOKENS = 16
"""Tokens of an answer for which the body gives no number, as in OpenAI's API."""

TokenId: TypeAlias = Annotated[int, Meta(ge=0)]


class CompletionBody(SamplingBody, kw_only=True):
    """The body of a legacy completion."""

    prompt: str | list[str | TokenId | list[TokenId]]
    best_of: NumChoices | None = None
    """Answers to make per prompt, of which the client gets the ``n`` likeliest."""
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    suffix: str | None = None

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's own tokens are wanted."""
        return self.echo is True and self.logprobs is not None

    @property
    def num_told(self) -> int:
        """Choices that the client gets per prompt."""
        return self.n or 1

    @property
    def num_made(self) -> int:
        """Choices that are made per prompt."""
        return self.best_of or self.num_told


def generation_requests(body: CompletionBody, model: ServedModel, request: Request) -> list[GenerationRequest]:
    """One question per prompt.

    Raises:
        RequestError: the body asks for a feature that is not supported.
        UsageError: an option is out of range.
    """
    _refuse(body)
    wanted = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    chooses = body.num_made > body.num_told
    if body.scores_prompt and not wanted:
        wanted = 1  # the engine reads a prompt to draw from it; who asked for no token gets none
    options = options_of(body, model, wanted, 0 if chooses and body.logprobs is None else body.logprobs)
    if body.scores_prompt:
        options = replace(options, prompt_logprobs=body.logprobs)
    return [
        GenerationRequest(
            prompt=prompt,
            options=options,
            model=body.model or "",
            num_choices=body.num_made,
            owner=owner(request),
            request_id=request_id(request),
        )
        for prompt in prompts_of(body.prompt)
    ]


def prompts_of(prompt: str | list[str | int | list[int]]) -> list[Prompt]:
    """The prompts of a text, a list of texts, token ids, or a list of lists of token ids.

    Raises:
        RequestError: there is no prompt, too many, or texts and tokens are mixed.
    """
    if isinstance(prompt, str):
        return [prompt]
    numbers = [one for one in prompt if isinstance(one, int)]
    if numbers and len(numbers) == len(prompt):
        return [tuple(numbers)]
    if numbers or not prompt:
        raise _wrong("prompt is a text, token ids, or a list of one of them")
    if len(prompt) > MAX_PROMPTS:
        raise _wrong(f"a request may have {MAX_PROMPTS} prompts, not {len(prompt)}")
    return [one if isinstance(one, str) else tuple(one) for one in prompt if not isinstance(one, int)]


def _refuse(body: CompletionBody) -> None:
    if body.suffix:
        raise RequestError(
            "invalid_request", "suffix is not supported: this model continues texts only", parameter="suffix"
        )
    if body.num_made < body.num_told:
        raise RequestError("invalid_request", "best_of must be at least n", "leave it out", parameter="best_of")
    if body.num_made > body.num_told and body.stream:
        raise RequestError(
            "invalid_request",
            "which answers are the best is known at their end, so best_of beyond n cannot be streamed",
            "send stream: false",
            parameter="best_of",
        )


def _wrong(sentence: str) -> RequestError:
    return RequestError("invalid_request", sentence, parameter="prompt")
