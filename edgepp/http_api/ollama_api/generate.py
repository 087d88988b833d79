"""``POST /api/generate``: one prompt, answered in lines of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgepp.http_api.endpoint import owner, read_body, unless_gone
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import GenerationRequest
from edgepp.http_api.model_service import ModelService, ServedModel
from edgepp.http_api.ollama_api.answer import AnyRequest, Question, answered
from edgepp.http_api.ollama_api.chat import no_images
from edgepp.http_api.ollama_api.ndjson import generate_shape
from edgepp.http_api.ollama_api.options import generate_options, think_variables
from edgepp.model.text.conversation import Conversation, Message, Prompt


class GenerateRequest(AnyRequest):
    """The body of ``/api/generate``; fields that are not here are ignored."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    context: list[int] | None = None
    suffix: str | None = None
    template: str | None = None
    images: list[Any] | None = None


async def generate(service: ModelService, request: Request) -> Response:
    """Answer the prompt of a request."""
    body = await read_body(request, GenerateRequest)

    async def question(model: ServedModel, name: str) -> Question:
        prompt = await unless_gone(request, _with_context(service, body, prompt_of(body, model, name), owner(request)))
        options = generate_options(model, body.options, body.format, body.logprobs, body.top_logprobs)

        async def context(answer: Sequence[int]) -> Mapping[str, Any]:
            return {} if body.raw else {"context": [*await service.encode(prompt, owner=owner(request)), *answer]}

        return Question(GenerationRequest(prompt, options, model=model.name), context)

    return await answered(service, request, body, generate_shape, question if body.prompt else None)


def prompt_of(body: GenerateRequest, model: ServedModel, name: str) -> Prompt:
    """The prompt of a body, for ``model``, which the client calls ``name``: raw, or a conversation of one question.

    Raises:
        RequestError: the body asks for what the model or edgepp cannot do.
    """
    if body.suffix:
        raise _refused("suffix", "fills no gaps in a text", "leave out suffix")
    if body.template:
        raise _refused("template", "takes no other template", "write the prompt yourself and send raw: true")
    if body.images:
        raise no_images("images")
    variables = think_variables(model, name, body.think)
    if body.raw:
        if body.system or body.context:
            raise RequestError("invalid_request", "a raw prompt has no system and no context", parameter="raw")
        return body.prompt or ""
    system: list[Message] = [{"role": "system", "content": body.system}] if body.system else []
    return Conversation([*system, {"role": "user", "content": body.prompt}], variables=variables)


def _refused(field: str, what: str, hint: str) -> RequestError:
    return RequestError("invalid_request", f"{field}: this model {what}", hint, parameter=field)


async def _with_context(service: ModelService, body: GenerateRequest, prompt: Prompt, asker: str) -> Prompt:
    """The prompt behind the tokens of an earlier answer, if the body has them."""
    return (*body.context, *await service.encode(prompt, owner=asker)) if body.context else prompt
