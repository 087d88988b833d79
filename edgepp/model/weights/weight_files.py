"""The safetensors files of a folder that belong to the model.

With an index: the files that the index names, and in each file the tensors that the index assigns to it. Without an
index: ``model.safetensors``, or one numbered set. Other files are ignored: weights in other formats, adapters, a Mac's
``._model.safetensors``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgepp.errors import ModelError
from edgepp.model.bounded_files import MAX_INDEX_BYTES, read_object, shown
from edgepp.model.weights.safetensors_header import TensorPlace, held_names, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_PULL_HINT = "delete its folder and pull the model again"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_MAX_FILES = 10_000
_NUMBERED = re.compile(r"model-(\d{1,6})-of-(\d{1,6})\.safetensors")


def is_plain(name: object) -> bool:
    """Whether a name from the network is safe as a file name: no separator, no ``..``, not hidden."""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None and ".." not in name


def read_index(folder: Path) -> dict[str, str] | None:
    """The file name of each tensor in the index of a folder; None where there is no index.

    Raises:
        ModelError: the index is damaged, or names a file by a name that is not plain.
    """
    path = folder / INDEX
    try:
        weight_map = read_object(path, MAX_INDEX_BYTES, strict=True).get("weight_map")
    except FileNotFoundError:
        return None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path} is damaged: it has no weight_map", _PULL_HINT)
    for tensor, name in weight_map.items():
        if not is_plain(name) or not name.endswith(".safetensors"):
            raise ModelError(f"{path} is damaged: it names the file '{shown(name)}'", _PULL_HINT)
        if not tensor.isprintable():
            raise ModelError(f"{path} is damaged: a tensor has an unprintable name", _PULL_HINT)
    return weight_map


def unindexed(names: Iterable[str], folder: Path) -> list[str]:
    """The files of the model among ``names``, the files of a folder without an index.

    Raises:
        ModelError: the files are of two numbered sets.
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


def missing_of_numbered_set(names: Iterable[str]) -> list[str]:
    """Names of the files that a numbered set lacks; empty where the model is one file."""
    present = set(names)
    match = next((found for name in sorted(present) if (found := _NUMBERED.fullmatch(name))), None)
    if match is None or SINGLE in present:
        return []
    number, total = match[1], match[2]
    expected = (f"model-{n:0{len(number)}d}-of-{total}.safetensors" for n in range(1, min(int(total), _MAX_FILES) + 1))
    return [name for name in expected if name not in present]


def regular_files(folder: Path) -> list[str]:
    """Names of the regular files with plain names in ``folder``.

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
    """The tensors in ``folder`` by name, and the names of all tensors that the index or the headers list.

    Raises:
        ModelError: the index is damaged or wrong, a file is damaged, or a tensor is in two files.
    """
    weight_map = read_index(folder)
    if weight_map is not None:
        return _indexed(folder, weight_map), frozenset(weight_map)
    held: dict[str, TensorPlace] = {}
    known: set[str] = set()
    for name in unindexed(regular_files(folder), folder):
        places = {place.name: place for place in read_header(folder / name, include_missing=True)}
        if duplicates := known & places.keys():
            raise ModelError(f"{folder} holds {shown(min(duplicates))} twice, in {name} and another file", _PULL_HINT)
        known |= places.keys()
        held |= _held(folder / name, places)
    return held, frozenset(known)


def _indexed(folder: Path, weight_map: Mapping[str, str]) -> dict[str, TensorPlace]:
    held: dict[str, TensorPlace] = {}
    by_file: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        by_file.setdefault(name, set()).add(tensor)
    for name, tensors in by_file.items():
        try:
            places = {place.name: place for place in read_header(folder / name, include_missing=True)}
        except FileNotFoundError:
            continue  # not fetched: this machine may need only other layers
        if absent := tensors - places.keys():
            raise ModelError(
                f"{folder / INDEX} places {shown(min(absent))} in {name}, which has no such tensor", _PULL_HINT
            )
        held |= {tensor: place for tensor, place in _held(folder / name, places).items() if tensor in tensors}
    return held


def _held(file: Path, places: dict[str, TensorPlace]) -> dict[str, TensorPlace]:
    names = held_names(file)
    return places if names is None else {name: place for name, place in places.items() if name in names}
