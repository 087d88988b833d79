"""Hub models on this disk: edgepp's own cache, and what other programs keep in huggingface_hub's.

``<cache>/hub/<org>--<name>/<commit>/<name>/`` is a folder in mlx-lm format. Beside it ``files.json`` lists the
repository, and ``<cache>/hub/<org>--<name>/refs/`` says which commit a branch meant when it was first asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from edgepp.errors import ModelError
from edgepp.model.bounded_files import INDEX_BYTES, read_bounded, read_object
from edgepp.model.cache import cache_dir
from edgepp.model.catalogue.source import HubRepository, is_commit
from edgepp.model.weights.model_parts import ModelParts, missing_files
from edgepp.model.weights.weight_files import files_here, is_plain
from edgepp.safe_files import write_atomically

_COMMIT_BYTES = 40


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository in edgepp's cache, complete or not."""

    source: HubRepository
    commit: str

    @property
    def folder(self) -> Path:
        """The model in mlx-lm format."""
        return self._root / self.source.name.split("/")[1]

    @property
    def _root(self) -> Path:
        return root(self.source) / self.commit

    def listed(self) -> dict[str, int]:
        """The repository's files and their bytes, as the hub listed them; none before the first fetch.

        Raises:
            ModelError: the record is damaged.
        """
        record = self._root / "files.json"
        try:
            files = read_object(record, INDEX_BYTES)
        except FileNotFoundError:
            return {}
        if not all(is_plain(name) and type(size) is int and size >= 0 for name, size in files.items()):
            raise ModelError(f"{record} is damaged: it does not list files", "delete it")
        return files

    def record(self, files: Mapping[str, int]) -> None:
        """Note what the repository holds, and that this commit is what the source's revision means."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._root / "files.json", json.dumps(dict(files)).encode())
        reference = _reference(self.source)
        reference.parent.mkdir(exist_ok=True)
        write_atomically(reference, self.commit.encode())

    def absent(self, parts: ModelParts) -> list[str]:
        """Names of the files and tensors among ``parts`` that are not here."""
        return missing_files(self.folder, self.listed(), parts)


def root(source: HubRepository) -> Path:
    """The folder of everything that is cached of a repository."""
    return cache_dir() / "hub" / source.name.replace("/", "--")


def recorded(source: HubRepository) -> Snapshot | None:
    """The snapshot that an earlier fetch recorded for the source's revision."""
    commit = _commit_in(_reference(source))
    return Snapshot(source, commit) if commit is not None else None


def find_on_disk(source: HubRepository, parts: ModelParts) -> Path | None:
    """The folder that holds ``parts`` of the source, in edgepp's cache or in huggingface_hub's."""
    snapshot = recorded(source)
    if snapshot is not None and not snapshot.absent(parts):
        return snapshot.folder
    return _in_shared_cache(source, parts)


def _reference(source: HubRepository) -> Path:
    return root(source) / "refs" / quote(source.revision, safe="")


def _commit_in(reference: Path) -> str | None:
    """The commit that a file names; None where there is no such file, or no commit in it."""
    try:
        commit = read_bounded(reference, _COMMIT_BYTES).decode("ascii", "replace")
    except (OSError, ModelError):
        return None
    return commit if is_commit(commit) else None


def _in_shared_cache(source: HubRepository, parts: ModelParts) -> Path | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    shared = Path(HF_HUB_CACHE) / f"models--{source.name.replace('/', '--')}"
    reference = shared / "refs" / source.revision
    commit = _commit_in(reference) or source.revision
    folder = shared / "snapshots" / commit
    if not folder.is_dir():
        return None
    names = files_here(folder)
    if (parts.embedding_and_head or parts.everything) and not any(name.startswith("tokenizer") for name in names):
        return None
    return None if missing_files(folder, names, parts) else folder
