"""A model by name, found on this disk or fetched as far as it is needed; and what is known of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepp.errors import ModelError
from edgepp.model import smollm2
from edgepp.model.cache import Progress
from edgepp.model.catalogue.source import HubRepository, LocalFolder, Source, Wheel, resolve
from edgepp.model.hub.snapshot import find_on_disk
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.model_parts import ALL_PARTS, ModelParts, missing_files, summary
from edgepp.model.weights.weight_files import files_here

__all__ = ["ALL_PARTS", "ModelParts", "Source", "describe", "fetch", "find_local", "is_cached", "resolve"]


def fetch(
    model: str, parts: ModelParts = ALL_PARTS, on_progress: Progress | None = None, *, newest: bool = False
) -> Path:
    """The folder that holds ``parts`` of ``model``; fetches what this disk lacks, and else asks nobody.

    A branch keeps the commit that it meant when it was first fetched, so that a model is never put together
    from two; ``newest`` asks the hub which commit it means now.

    Raises:
        ModelError: there is no such model, it may not be read, or it cannot be fetched now.
    """
    source = resolve(model)
    if isinstance(source, Wheel):
        return smollm2.provide(on_progress)
    if isinstance(source, LocalFolder):
        return _checked(source, parts)
    if not newest and (found := find_on_disk(source, parts)):
        return found
    from edgepp.model.hub.download import download  # the hub's library is slow to import and not needed until here

    return download(source, parts, on_progress, newest)


def find_local(model: str, parts: ModelParts = ALL_PARTS) -> Path | None:
    """The folder that holds ``parts`` of ``model`` on this disk, or None; opens no connection.

    Raises:
        ModelError: there is no such model, or what is here of it is damaged.
    """
    source = resolve(model)
    if isinstance(source, Wheel):
        return smollm2.folder() if smollm2.is_converted() else None
    if isinstance(source, LocalFolder):
        return None if _lacking(source, parts) else source.path
    return find_on_disk(source, parts)


def is_cached(model: str, parts: ModelParts = ALL_PARTS) -> bool:
    """Whether ``parts`` of ``model`` are on this disk, so that no network is needed."""
    return find_local(model, parts) is not None


def describe(model: str) -> dict[str, Any]:
    """What is known of ``model``: for people, and as JSON. The hub is asked where it has no card and is not here.

    Raises:
        ModelError: there is no such model, or what is here of it is damaged.
        HubUnreachable: nothing is known of it here, and the hub does not answer.
    """
    source, path = resolve(model), find_local(model)
    facts: dict[str, Any] = {"model": model, "cached": path is not None, "path": str(path) if path else None}
    card = None if isinstance(source, LocalFolder) else source.card
    if card is not None:
        return facts | asdict(card) | {"bytes_total": card.bytes_total}
    if isinstance(source, HubRepository):
        facts |= {"repository": source.name, "revision": source.revision}
        if path is None:
            return facts | _listed(source)
    return facts | (_measured(path) if path else {})


def _listed(source: HubRepository) -> dict[str, Any]:
    from edgepp.model.hub.client import HubClient  # its library is slow to import

    listing = HubClient(source.name).listing(source.revision)
    weights = [size for name, size in listing.files.items() if name.endswith(".safetensors")]
    if not weights:
        raise ModelError(f"{source.name} holds no *.safetensors", "choose a repository in mlx-lm format")
    return {"commit": listing.commit, "bytes_total": sum(weights)}


def _measured(path: Path) -> dict[str, Any]:
    checkpoint = Checkpoint.open(path)
    return {
        "family": checkpoint.family,
        "layers": checkpoint.num_layers,
        "hidden": checkpoint.hidden_size,
        "vocabulary": checkpoint.vocab_size,
        "context": checkpoint.context,
        "bytes_total": sum(place.nbytes for place in checkpoint.tensors.values()),
    }


def _checked(source: LocalFolder, parts: ModelParts) -> Path:
    Checkpoint.open(source.path)
    if absent := _lacking(source, parts):
        raise ModelError(f"{source.path} lacks {summary(absent)}", "copy the rest there, or name another folder")
    return source.path


def _lacking(source: LocalFolder, parts: ModelParts) -> list[str]:
    return missing_files(source.path, files_here(source.path), parts)
