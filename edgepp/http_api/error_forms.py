"""The form in which errors are told, by the request."""

from __future__ import annotations

from starlette.types import Scope

from edgepp.http_api.anthropic_api import errors as anthropic
from edgepp.http_api.anthropic_api.model_info import is_anthropics
from edgepp.http_api.endpoint import ErrorForm
from edgepp.http_api.ollama_api import errors as ollama
from edgepp.http_api.openai_api import errors as openai

_FORMS = (
    (("/v1/messages", "/messages"), anthropic.FORM),
    (("/api/",), ollama.FORM),
)


def form_of(scope: Scope) -> ErrorForm:
    """The form of errors of the API that the path belongs to; for paths of no API, that of the client, or OpenAI's."""
    otherwise = anthropic.FORM if is_anthropics(scope) else openai.FORM
    return next((form for prefixes, form in _FORMS if scope["path"].startswith(prefixes)), otherwise)
