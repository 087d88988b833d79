"""Download of a model from the hub: the small files, then the byte ranges of the needed tensors."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path

from edgepp.errors import ModelError
from edgepp.model.bounded_files import max_file_bytes
from edgepp.model.cache import Progress, cannot_write, check_space, locked
from edgepp.model.catalogue.cards import Card
from edgepp.model.catalogue.source import HubRepository
from edgepp.model.hub.client import HubClient
from edgepp.model.hub.http_client import HubUnreachable
from edgepp.model.hub.snapshot import Snapshot, find_on_disk, recorded_snapshot, repository_folder
from edgepp.model.weights.byte_ranges import Range, cut, total
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.model_parts import ModelParts, summary, weight_files
from edgepp.model.weights.partial_file import PartialFile
from edgepp.model.weights.safetensors_header import header_bytes
from edgepp.safe_files import write_atomically

_CONNECTIONS = 4
_PIECE_BYTES = 32 << 20
_SAVE_BYTES = 256 << 20  # downloaded between two updates of the record of a partial file
_HEAD_BYTES = 256 << 10  # more than the header of most files, and little compared to their weights

_SPARE_BYTES = 64 << 20  # left free on the disk after the download
_MAX_SMALL_FILES_BYTES = 512 << 20

MissingRange = tuple[PartialFile, Range]
"""A byte range to fetch, and the file that it is written into."""


def download(source: HubRepository, parts: ModelParts, on_progress: Progress | None, newest: bool) -> Path:
    """Fetch the missing files and tensors of ``parts``; returns the folder of the model.

    Raises:
        ModelError: the repository lacks these parts or may not be read, or the disk is full.
        HubUnreachable: the hub does not answer; bytes that arrived are kept for the next attempt.
    """
    hub = HubClient(source.name)
    with locked(repository_folder(source) / "lock", on_progress):
        if not newest and (found := find_on_disk(source, parts)):
            return found  # another process fetched it while this one waited
        known = recorded_snapshot(source)
        try:
            listing = hub.listing(known.commit if known and not newest else source.revision)
        except HubUnreachable as error:
            if found := find_on_disk(source, parts):
                return found
            where = (
                f"only in part on this disk, without {summary(known.missing(parts))}" if known else "not on this disk"
            )
            raise HubUnreachable(f"{source.name} is {where}, and {error}", error.hint) from error
        snapshot = Snapshot(source, listing.commit)
        try:
            snapshot.save_listing(listing.files)
            _fill(hub, snapshot, parts, _ProgressCounter(on_progress))
        except OSError as error:
            raise cannot_write(snapshot.folder, error) from error
        return snapshot.folder


class _ProgressCounter:
    """Counter of the bytes done and the bytes in all, for ``on_progress``; ``add`` is safe from several threads."""

    def __init__(self, on_progress: Progress | None) -> None:
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._done = self._total = 0

    def expect(self, count: int) -> None:
        self._total += count

    def add(self, count: int, what: str) -> None:
        with self._lock:
            self._done += count
            if self._on_progress is not None:
                self._on_progress(min(self._done, self._total), self._total, what)


def _fill(hub: HubClient, snapshot: Snapshot, parts: ModelParts, counter: _ProgressCounter) -> None:
    folder, listed = snapshot.folder, snapshot.listed()
    small = sorted(name for name in listed if parts.wants_file(name) and not (folder / name).is_file())
    counter.expect(_checked_total(snapshot, sum(listed[name] for name in small)))
    fetched = 0
    for name in small:
        data = hub.read(snapshot.commit, name, max_file_bytes(name), listed[name])
        fetched = _checked_total(snapshot, fetched + len(data))
        write_atomically(folder / name, data)
        counter.add(len(data), name)
    _check_config(folder, parts, snapshot.source.card)
    files = weight_files(folder, listed, parts)
    _check_spellings(snapshot, [*filter(parts.wants_file, listed), *files])
    if not files:
        raise ModelError(
            f"{snapshot.source.name} has no weights in mlx-lm format (model*.safetensors)",
            "look for the model under mlx-community, or convert it with `mlx_lm.convert`",
        )
    if unlisted := sorted(files.keys() - listed.keys()):
        raise ModelError(
            f"the index of {snapshot.source.name} names {unlisted[0]}, which the repository lacks",
            "take the model from another repository",
        )
    plan = [piece for name in files for piece in _plan(hub, snapshot, name, listed[name], parts)]
    size_bytes = sum(total(ranges) for _, ranges, _ in plan)
    check_space(folder, size_bytes + _SPARE_BYTES)
    counter.expect(size_bytes)
    pieces = [
        (file, piece) for file, ranges, ranged in plan for piece in (cut(ranges, _PIECE_BYTES) if ranged else ranges)
    ]
    _fetch_pieces(hub, snapshot.commit, pieces, counter)
    if absent := snapshot.missing(parts):
        raise ModelError(f"{snapshot.source.name} does not hold {summary(absent)}")


def _checked_total(snapshot: Snapshot, count: int) -> int:
    """Check ``count``, the bytes of all files without weights; returns ``count``."""
    if count > _MAX_SMALL_FILES_BYTES:
        raise ModelError(
            f"{snapshot.source.name} has over {_MAX_SMALL_FILES_BYTES >> 20} MiB of small files, which no model needs",
            "take the model from another repository",
        )
    return count


def _check_spellings(snapshot: Snapshot, names: Iterable[str]) -> None:
    """Check that no two files are one where the file system takes upper and lower case for the same."""
    spelled: dict[str, str] = {}
    for name in names:
        if (other := spelled.setdefault(name.lower(), name)) != name:
            raise ModelError(
                f"{snapshot.source.name} has both {other} and {name}, which a Mac takes for one file",
                "take the model from another repository",
            )


def _check_config(folder: Path, parts: ModelParts, card: Card | None) -> None:
    """Check config.json before weights are fetched: the layers must exist, and the sizes must be those of the card."""
    settings = Checkpoint.open(folder).settings
    count = settings.num_layers
    if parts.layers is not None and parts.layers.stop > count:
        raise ModelError(
            f"layers {parts.layers} lie outside {folder.name}, which has layers 0-{count - 1}",
            "choose layers of the model",
        )
    if card is None:
        return
    for key, found, expected in (
        ("num_hidden_layers", count, card.layers),
        ("hidden_size", settings.hidden_size, card.hidden),
        ("vocab_size", settings.vocab_size, card.vocabulary),
    ):
        if found != expected:
            raise ModelError(
                f"config.json of {card.repository} gives {found} as {key}, and the card of {card.name} {expected}",
                "check HF_ENDPOINT: another model was sent",
            )


def _plan(
    hub: HubClient, snapshot: Snapshot, name: str, listed_bytes: int, parts: ModelParts
) -> list[tuple[PartialFile, list[Range], bool]]:
    """The ranges to fetch of a file, and whether the hub supports ranges; if not, the only range is the whole file."""
    path = snapshot.folder / name
    file = PartialFile.open(path)
    if file is None:
        head, size_bytes, ranged = _head(hub, snapshot.commit, name, listed_bytes)
        file = PartialFile.create(path, size_bytes, head)
    elif file.missing_tensors(parts.wants):
        with closing(hub.stream(snapshot.commit, name, 0, 8)) as chunks:
            ranged = next(chunks).ranged
    if not file.missing_tensors(parts.wants):
        return []
    return [(file, file.missing_ranges(parts.wants) if ranged else [(0, file.size_bytes)], ranged)]


def _head(hub: HubClient, commit: str, name: str, listed_bytes: int) -> tuple[bytes, int, bool]:
    """First bytes of a safetensors file including the header, size of the file, and whether the hub supports ranges."""
    head = bytearray()
    size_bytes, ranged = 0, False
    stop = _HEAD_BYTES
    while len(head) < stop:
        with closing(hub.stream(commit, name, len(head), stop)) as chunks:
            for chunk in chunks:
                hub.check_size(name, chunk.size_bytes, listed_bytes)
                head[chunk.offset :] = chunk.data
                size_bytes, ranged = chunk.size_bytes, chunk.ranged
                if len(head) >= stop:
                    break
        stop = 8 + header_bytes(head, Path(name), size_bytes)
    return bytes(head), size_bytes, ranged


def _fetch_pieces(hub: HubClient, commit: str, plan: Sequence[MissingRange], counter: _ProgressCounter) -> None:
    """Fetch the pieces over several connections; the bytes that arrived are recorded even after an error."""

    def fetch_piece(file: PartialFile, piece: Range) -> int:
        with closing(hub.stream(commit, file.path.name, *piece)) as chunks:
            for chunk in chunks:
                hub.check_size(file.path.name, chunk.size_bytes, file.size_bytes)
                file.write(chunk.offset, chunk.data)
                counter.add(len(chunk.data), file.path.name)
        return piece[1] - piece[0]

    unsaved = 0
    pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="fetch")
    try:
        futures = {pool.submit(fetch_piece, file, piece): file for file, piece in plan}
        for future in as_completed(futures):
            unsaved += future.result()
            if unsaved >= _SAVE_BYTES:
                futures[future].save()
                unsaved = 0
    finally:
        hub.close()
        pool.shutdown(cancel_futures=True)
        for file in {file.path: file for file, _ in plan}.values():
            file.save()
