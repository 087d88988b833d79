"""The form in which errors are told, by the path of the request."""

from __future__ import annotations

from edgepp.http_api.anthropic_api import errors as anthropic
from edgepp.http_api.endpoint import ErrorForm
from edgepp.http_api.ollama_api import errors as ollama
from edgepp.http_api.openai_api import errors as openai

_FORMS = (
    (("/v1/messages", "/messages"), anthropic.FORM),
    (("/api/",), ollama.FORM),
)


def form_of(path: str) -> ErrorForm:
    """The form of errors of the API that ``path`` belongs to; that of OpenAI for paths of no API."""
    return next((form for prefixes, form in _FORMS if path.startswith(prefixes)), openai.FORM)
