"""The routes of OpenAI's API, without those of responses."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from edgepp.http_api.endpoint import Handler
from edgepp.http_api.failures import RequestError
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.openai_api import lm_studio
from edgepp.http_api.openai_api.chat_completions import chat_completions
from edgepp.http_api.openai_api.chat_request import ChatBody
from edgepp.http_api.openai_api.completions import completions
from edgepp.http_api.openai_api.completions_request import CompletionBody
from edgepp.http_api.openai_api.errors import error_form
from edgepp.http_api.openai_api.models import get_model, list_models
from edgepp.http_api.openai_api.tokens import DetokenizeBody, TokenizeBody, detokenize, input_tokens, tokenize
from edgepp.http_api.operation import Operation


def routes(service: ModelService) -> list[BaseRoute]:
    """The routes over ``service``."""
    table: list[tuple[str, str, Handler, Any, str]] = [
        ("POST", "/v1/chat/completions", chat_completions(service), ChatBody, "Answer a chat."),
        ("POST", "/v1/chat/completions/input_tokens", input_tokens(service), ChatBody, "Count a chat's tokens."),
        ("POST", "/v1/completions", completions(service), CompletionBody, "Continue texts."),
        ("GET", "/v1/models", list_models(service), None, "The served model."),
        ("GET", "/v1/models/{id:path}", get_model(service), None, "The served model, by one of its names."),
        ("POST", "/tokenize", tokenize(service), TokenizeBody, "The token ids of a text or a chat."),
        ("POST", "/detokenize", detokenize(service), DetokenizeBody, "The text of token ids."),
        ("GET", "/api/v0/models", lm_studio.list_models(service), None, "The served model, as LM Studio tells it."),
        ("GET", "/api/v0/models/{id:path}", lm_studio.get_model(service), None, "One name of it, as LM Studio does."),
        ("POST", "/v1/embeddings", _embeddings, None, "Refused: the cluster generates text."),
    ]
    form = error_form(service)
    return [
        Operation(method, path, handler, form, summary=summary, body=body)
        for method, path, handler, body, summary in table
    ]


async def _embeddings(_: Request) -> Response:
    raise RequestError("not_implemented", "embeddings are not served: the cluster generates text")
