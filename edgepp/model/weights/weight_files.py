"""Which safetensors files of a folder hold the model.

With an index it is the files that the index names, and of each file the tensors that the index places there. Without
one it is ``model.safetensors``, or one numbered set. Whatever else lies in the folder does not count: another format's
weights, an adapter, a Mac's ``._model.safetensors``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgepp.errors import ModelError
from edgepp.model.bounded_files import INDEX_BYTES, read_object, shown
from edgepp.model.weights.safetensors_header import TensorPlace, held_names, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_PULL = "delete its folder and pull the model again"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_MOST_FILES = 10_000
_NUMBERED = re.compile(r"model-(\d{1,6})-of-(\d{1,6})\.safetensors")


def is_plain(name: object) -> bool:
    """Whether a name from the network may become a file in a folder: no separator, no ``..``, not hidden."""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None and ".." not in name


def read_index(folder: Path) -> dict[str, str] | None:
    """The file name of each tensor that the folder's index lists; None where there is no index.

    Raises:
        ModelError: the index is damaged, or names a file by anything but a plain name.
    """
    path = folder / INDEX
    try:
        weight_map = read_object(path, INDEX_BYTES, strict=True).get("weight_map")
    except FileNotFoundError:
        return None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path} is damaged: it has no weight_map", _PULL)
    for tensor, name in weight_map.items():
        if not is_plain(name) or not name.endswith(".safetensors"):
            raise ModelError(f"{path} is damaged: it names the file '{shown(name)}'", _PULL)
        if not tensor.isprintable():
            raise ModelError(f"{path} is damaged: a tensor has an unprintable name", _PULL)
    return weight_map


def unindexed(names: Iterable[str], folder: Path) -> list[str]:
    """Of the files ``names`` in a folder without an index, those that hold the model.

    Raises:
        ModelError: there are two numbered sets.
    """
    present = set(names)
    if SINGLE in present:
        return [SINGLE]
    numbered = {name: match for name in sorted(present) if (match := _NUMBERED.fullmatch(name))}
    if len({int(match[2]) for match in numbered.values()}) > 1:
        raise ModelError(
            f"{folder} holds parts of two models: {min(numbered)} and {max(numbered, key=lambda n: numbered[n][2])}",
            f"keep the files of one of them, or add its {INDEX}",
        )
    return list(numbered)


def absent_of_set(names: Iterable[str]) -> list[str]:
    """Names that a numbered set of files lacks; none where the model is one file."""
    present = set(names)
    match = next((found for name in sorted(present) if (found := _NUMBERED.fullmatch(name))), None)
    if match is None or SINGLE in present:
        return []
    number, total = match[1], match[2]
    every = (f"model-{n:0{len(number)}d}-of-{total}.safetensors" for n in range(1, min(int(total), _MOST_FILES) + 1))
    return [name for name in every if name not in present]


def files_here(folder: Path) -> list[str]:
    """Names of the regular files in ``folder`` that a model could be made of: no hidden ones, no folders or pipes.

    Raises:
        ModelError: the folder cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir() if is_plain(path.name) and path.is_file())
    except OSError as error:
        raise ModelError(
            f"{folder} cannot be read: {error.strerror or error}", "check the folder's owner and its permissions"
        ) from error


def read_tensors(folder: Path) -> tuple[dict[str, TensorPlace], frozenset[str]]:
    """The tensors that ``folder`` holds, and the names of all that are known of the model.

    Raises:
        ModelError: the index is damaged or wrong, a file is damaged, or a tensor comes twice.
    """
    weight_map = read_index(folder)
    if weight_map is not None:
        return _indexed(folder, weight_map), frozenset(weight_map)
    held: dict[str, TensorPlace] = {}
    known: set[str] = set()
    for name in unindexed(files_here(folder), folder):
        places = {place.name: place for place in read_header(folder / name, whole=True)}
        if double := known & places.keys():
            raise ModelError(f"{folder} holds {shown(min(double))} twice, in {name} and another file", _PULL)
        known |= places.keys()
        held |= _held(folder / name, places)
    return held, frozenset(known)


def _indexed(folder: Path, weight_map: Mapping[str, str]) -> dict[str, TensorPlace]:
    held: dict[str, TensorPlace] = {}
    placed: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        placed.setdefault(name, set()).add(tensor)
    for name, tensors in placed.items():
        try:
            places = {place.name: place for place in read_header(folder / name, whole=True)}
        except FileNotFoundError:
            continue  # not fetched: this machine may need other layers
        if absent := tensors - places.keys():
            raise ModelError(f"{folder / INDEX} places {shown(min(absent))} in {name}, which has no such tensor", _PULL)
        held |= {tensor: place for tensor, place in _held(folder / name, places).items() if tensor in tensors}
    return held


def _held(file: Path, places: dict[str, TensorPlace]) -> dict[str, TensorPlace]:
    names = held_names(file)
    return places if names is None else {name: place for name, place in places.items() if name in names}
