"""Hub models on this disk: in edgepp's own cache, and in that of huggingface_hub.

``<cache>/hub/<org>--<name>/<commit>/<name>/`` is a folder in mlx-lm format. ``<commit>/files.json`` lists the files of
the repository, and ``<cache>/hub/<org>--<name>/refs/<branch>`` names the commit of a branch at its first fetch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from edgepp.errors import ModelError
from edgepp.model.bounded_files import MAX_INDEX_BYTES, read_bounded, read_object
from edgepp.model.cache import cache_dir, has_entry, own_entry
from edgepp.model.catalogue.source import HubRepository, is_commit
from edgepp.model.weights.model_parts import ModelParts, missing_files
from edgepp.model.weights.weight_files import is_plain, regular_files
from edgepp.safe_files import write_atomically

_COMMIT_BYTES = 40


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository in edgepp's cache, complete or partial."""

    source: HubRepository
    commit: str

    @property
    def folder(self) -> Path:
        """The folder of the model in mlx-lm format."""
        return self._root / self.source.name.split("/")[1]

    @property
    def _root(self) -> Path:
        return repository_folder(self.source) / self.commit

    def listed(self) -> dict[str, int]:
        """Size in bytes of each file of the repository by name, as the hub listed them; empty before the first fetch.

        Raises:
            ModelError: ``files.json`` is damaged.
        """
        path = self._root / "files.json"
        try:
            files = read_object(path, MAX_INDEX_BYTES)
        except FileNotFoundError:
            return {}
        if not all(is_plain(name) and type(size) is int and size >= 0 for name, size in files.items()):
            raise ModelError(f"{path} is damaged: it does not list files", "delete it")
        return files

    def save_listing(self, files: Mapping[str, int]) -> None:
        """Record ``files`` as the listing of the repository, and this commit as that of the source's revision."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._root / "files.json", json.dumps(dict(files)).encode())
        reference = _reference(self.source)
        reference.parent.mkdir(exist_ok=True)
        write_atomically(reference, self.commit.encode())

    def missing(self, parts: ModelParts) -> list[str]:
        """Names of the files and tensors of ``parts`` that are not on this disk.

        Raises:
            ModelError: ``files.json``, the index or a partial file on this disk is damaged.
        """
        return missing_files(self.folder, self.listed(), parts)


def repository_folder(source: HubRepository) -> Path:
    """The folder of edgepp's cache for all commits of a repository."""
    return own_entry(cache_dir() / "hub", source.name.replace("/", "--"))


def recorded_snapshot(source: HubRepository) -> Snapshot | None:
    """The snapshot that an earlier fetch recorded for the revision of the source, or None."""
    commit = _commit_in(_reference(source))
    return Snapshot(source, commit) if commit is not None else None


def find_on_disk(source: HubRepository, parts: ModelParts) -> Path | None:
    """The folder with ``parts`` of the source, in edgepp's cache or in that of huggingface_hub, or None.

    Raises:
        ModelError: the files of the source on this disk are damaged.
    """
    snapshot = recorded_snapshot(source)
    if snapshot is not None and not snapshot.missing(parts):
        return snapshot.folder
    return _in_shared_cache(source, parts)


def _reference(source: HubRepository) -> Path:
    return own_entry(repository_folder(source) / "refs", quote(source.revision, safe=""))


def _commit_in(reference: Path) -> str | None:
    """The commit in a reference file; None where there is no such file, or no commit in it."""
    try:
        commit = read_bounded(reference, _COMMIT_BYTES).decode("ascii", "replace")
    except (OSError, ModelError):
        return None
    return commit if is_commit(commit) else None


def _in_shared_cache(source: HubRepository, parts: ModelParts) -> Path | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    name = f"models--{source.name.replace('/', '--')}"
    shared = Path(HF_HUB_CACHE) / name
    reference = shared / "refs" / source.revision
    named = has_entry(reference.parent, reference.name)
    commit = (_commit_in(reference) if named else None) or source.revision
    folder = shared / "snapshots" / commit
    if not folder.is_dir() or not has_entry(shared.parent, name):
        return None
    names = regular_files(folder)
    if (parts.embedding_and_head or parts.everything) and not any(name.startswith("tokenizer") for name in names):
        return None
    return None if missing_files(folder, names, parts) else folder
