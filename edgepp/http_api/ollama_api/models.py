"""Facts about the served model in Ollama's API: list, details, loaded models, and the version of the API."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import edgepp
from edgepp.http_api.endpoint import json_response, read_body
from edgepp.http_api.failures import RequestError
from edgepp.http_api.model_service import ModelService, ServedModel
from edgepp.http_api.ollama_api.ndjson import MEDIA_TYPE, line, rfc3339

API_VERSION = "0.14.3"
"""A version of Ollama: three whole numbers, which clients compare. This version serves OpenAI's responses and
Anthropic's messages, too, as edgepp does."""
_NEVER = "2318-01-01T00:00:00Z"
"""Time at which the model is unloaded: clients show a date so far away as forever."""


class ModelRequest(msgspec.Struct):
    """The body of requests that name a model, by its older or newer field; other fields are ignored."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None


def named(service: ModelService, name: str | None) -> ServedModel:
    """The served model by a name, with or without ``:latest``.

    Raises:
        RequestError: no such model is served.
    """
    try:
        return service.served(name)
    except RequestError:
        if name is None or not name.endswith(":latest"):
            raise
        return service.served(name.removesuffix(":latest"))


def tagged(model: ServedModel) -> str:
    """The name of the model with a tag, as clients expect to find it in the list."""
    return model.name if ":" in model.name else f"{model.name}:latest"


async def root(_service: ModelService, _request: Request) -> Response:
    """The text by which clients know that a server is there."""
    return PlainTextResponse("Ollama is running")


async def version(_service: ModelService, _request: Request) -> Response:
    """The version of Ollama's API that edgepp follows, and its own."""
    return json_response({"version": API_VERSION, "edgepp": edgepp.__version__})


async def tags(service: ModelService, _request: Request) -> Response:
    """The list of models: the one that is served, also while it loads."""
    model = service.model
    entry = {**_entry(model), "modified_at": rfc3339(model.created_s), "capabilities": capabilities(model)}
    return json_response({"models": [entry]})


async def ps(service: ModelService, _request: Request) -> Response:
    """The list of loaded models."""
    model = service.model
    if model.state != "loaded":
        return json_response({"models": []})
    memory = {"expires_at": _NEVER, "size_vram": model.size_bytes, "context_length": model.context}
    return json_response({"models": [{**_entry(model), **memory}]})


async def show(service: ModelService, request: Request) -> Response:
    """The details of a model."""
    body = await read_body(request, ModelRequest)
    return json_response(shown(named(service, body.model or body.name)))


async def pull(service: ModelService, request: Request) -> Response:
    """Success for the served model, and not found for others: a client cannot change the model of a cluster."""
    body = await read_body(request, ModelRequest)
    named(service, body.model or body.name)
    success = {"status": "success"}
    if body.stream is False:
        return json_response(success)
    return Response(line({"status": "pulling manifest"}) + line(success), media_type=MEDIA_TYPE)


async def unsupported(_service: ModelService, request: Request) -> Response:
    """The refusal of requests that edgepp does not support.

    Raises:
        RequestError: always.
    """
    what = request.url.path.rpartition("/api/")[2].partition("/")[0]
    if what in ("embed", "embeddings"):
        raise RequestError("not_implemented", "edgepp makes no embeddings", "use another server for embeddings")
    hint = "change it with `edgepp use MODEL` on a machine of the cluster"
    raise RequestError("permission", f"/api/{what} is not allowed: clients cannot change the model of a cluster", hint)


def capabilities(model: ServedModel) -> list[str]:
    """Abilities of the model, in Ollama's words."""
    return ["completion", *(["tools"] if model.supports_tools else []), *(["thinking"] if model.thinks else [])]


def shown(model: ServedModel) -> dict[str, Any]:
    """The answer of ``/api/show``."""
    parameters = "\n".join(f"{name:<30} {value}" for name, value in _parameters(model).items())
    return {
        "modelfile": f"FROM {model.name}\n",
        "parameters": parameters,
        "template": _template(model),
        "details": _details(model),
        "model_info": _information(model),
        "capabilities": capabilities(model),
        "modified_at": rfc3339(model.created_s),
    }


def _parameters(model: ServedModel) -> dict[str, float]:
    renamed = {"repetition_penalty": "repeat_penalty"}
    return {"num_ctx": model.context, **{renamed.get(name, name): value for name, value in model.sampling.items()}}


def _template(model: ServedModel) -> str:
    """The chat template. LiteLLM takes a model for one with tools by the word in its template."""
    if model.supports_tools and "tools" not in model.template.lower():
        return model.template + "{# edgepp writes the tools into the system message #}"
    return model.template


def _information(model: ServedModel) -> dict[str, Any]:
    return {
        "general.architecture": model.family,
        "general.basename": model.name,
        "general.type": "model",
        "general.size_label": parameter_size(model.num_parameters),
        "general.parameter_count": model.num_parameters,
        f"{model.family}.context_length": model.context,
        f"{model.family}.embedding_length": model.hidden_size,
    }


def _entry(model: ServedModel) -> dict[str, Any]:
    name = tagged(model)
    return {
        "name": name,
        "model": name,
        "size": model.size_bytes,
        "digest": model.digest,
        "details": _details(model),
    }


def _details(model: ServedModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": model.family,
        "families": [model.family],
        "parameter_size": parameter_size(model.num_parameters),
        "quantization_level": model.quantization,
    }


def parameter_size(count: int) -> str:
    """A number of parameters as ``8.0B`` or ``135M``."""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
