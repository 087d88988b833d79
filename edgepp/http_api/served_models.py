"""The ``ModelService`` of a cluster that this program coordinates."""

# ruff: noqa: ARG001, ARG002 - stands in for the models of a cluster until they are there

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import GenerationEvent, GenerationRequest
from edgepp.http_api.http_options import HttpOptions
from edgepp.http_api.model_service import ModelService, ServedModel
from edgepp.model.text.conversation import Prompt
from edgepp.python_api import ServedCluster
from edgepp.tool_calls.tool_use import ToolUse


def service_of(models: ServedCluster | ModelService, options: HttpOptions) -> ModelService:
    """``models`` itself, or the models of a cluster under all names of ``options``."""
    return _NotYet(models) if isinstance(models, ServedCluster) else models


class _NotYet:
    """Stands where the models of a cluster will be."""

    def __init__(self, cluster: ServedCluster) -> None:
        self._cluster = cluster

    @property
    def model(self) -> ServedModel:
        raise RequestError("loading", "the model is not served over HTTP yet", retry_after_s=1.0)

    def served(self, name: str | None) -> ServedModel:
        return self.model

    def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationEvent]:
        raise RequestError("loading", "the model is not served over HTTP yet", retry_after_s=1.0)

    async def encode(self, prompt: Prompt, tool_use: ToolUse | None = None) -> list[int]:
        raise RequestError("loading", "the model is not served over HTTP yet", retry_after_s=1.0)

    async def decode(self, token_ids: Sequence[int]) -> str:
        raise RequestError("loading", "the model is not served over HTTP yet", retry_after_s=1.0)

    def status(self) -> Mapping[str, Any]:
        return self._cluster.status
