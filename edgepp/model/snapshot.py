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
from edgepp.model.cache import cache_dir, write_atomically
from edgepp.model.parts import Parts, missing
from edgepp.model.source import HubRepository, is_commit


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
            return {str(name): int(size) for name, size in json.loads(record.read_bytes()).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError) as error:
            raise ModelError(f"{record} is damaged: {error}", "delete it") from error

    def record(self, files: Mapping[str, int]) -> None:
        """Note what the repository holds, and that this commit is what the source's revision means."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._root / "files.json", json.dumps(dict(files)).encode())
        reference = _reference(self.source)
        reference.parent.mkdir(exist_ok=True)
        write_atomically(reference, self.commit.encode())

    def absent(self, parts: Parts) -> list[str]:
        """Names of the files and tensors among ``parts`` that are not here."""
        return missing(self.folder, self.listed(), parts)


def root(source: HubRepository) -> Path:
    """The folder of everything that is cached of a repository."""
    return cache_dir() / "hub" / source.name.replace("/", "--")


def recorded(source: HubRepository) -> Snapshot | None:
    """The snapshot that an earlier fetch recorded for the source's revision."""
    commit = _commit_in(_reference(source))
    return Snapshot(source, commit) if commit is not None else None


def on_disk(source: HubRepository, parts: Parts) -> Path | None:
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
        commit = reference.read_bytes().decode("ascii", "replace")
    except OSError:
        return None
    return commit if is_commit(commit) else None


def _in_shared_cache(source: HubRepository, parts: Parts) -> Path | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    shared = Path(HF_HUB_CACHE) / f"models--{source.name.replace('/', '--')}"
    reference = shared / "refs" / source.revision
    commit = _commit_in(reference) or source.revision
    folder = shared / "snapshots" / commit
    if not folder.is_dir():
        return None
    names = [path.name for path in folder.iterdir() if path.is_file()]
    if (parts.ends or parts.everything) and not any(name.startswith("tokenizer") for name in names):
        return None
    return None if missing(folder, names, parts) else folder
