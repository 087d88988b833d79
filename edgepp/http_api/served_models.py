"""The ``ModelService`` that an HTTP server is given."""

from __future__ import annotations

from edgepp.http_api.cluster_models import ClusterModels
from edgepp.http_api.http_options import HttpOptions
from edgepp.http_api.model_service import ModelService
from edgepp.python_api import ServedCluster


def service_of(models: ServedCluster | ModelService, options: HttpOptions) -> ModelService:
    """``models`` itself, or the models of a cluster under all names of ``options``."""
    return ClusterModels(models, options.aliases) if isinstance(models, ServedCluster) else models
