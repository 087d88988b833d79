"""The parts of a model that a process needs, and the files and tensors of them that a folder lacks."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import is_of_head, layer_of
from edgepp.model.weights.partial_file import PartialFile
from edgepp.model.weights.weight_files import INDEX, read_index, unindexed

_STAGE_FILES = ("config.json", "generation_config.json", INDEX)
_COORDINATOR_FILES = ("*.json", "*.jinja", "*.txt", "*.tiktoken", "tokenizer.model")


@dataclass(frozen=True)
class ModelParts:
    """Parts of a model: ``layers`` for a stage; for a coordinator embedding, final norm, head and tokenizer."""

    layers: LayerRange | None = None
    embedding_and_head: bool = False
    head: str = ""
    """Module of the output head (``Checkpoint.head_module``), wanted with the final norm; empty for neither."""
    everything: bool = False

    def wants(self, tensor: str) -> bool:
        """Whether the tensor named ``tensor`` belongs to the parts."""
        layer = layer_of(tensor)
        if self.everything:
            return True
        if layer is None:
            return self.embedding_and_head or (bool(self.head) and is_of_head(tensor, self.head))
        return self.layers is not None and layer in self.layers

    def wants_file(self, name: str) -> bool:
        """Whether the file ``name``, one without weights, belongs to the parts."""
        patterns = _COORDINATOR_FILES if self.embedding_and_head or self.everything else _STAGE_FILES
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


ALL_PARTS = ModelParts(everything=True)


def weight_files(folder: Path, listed: Iterable[str], parts: ModelParts) -> dict[str, list[str]]:
    """Names of the safetensors files with tensors of ``parts``, and the tensors that the index assigns to each.

    Without an index, the lists are empty: the headers of the files give the tensors.

    Raises:
        ModelError: the index is damaged, or two sets of files are listed.
    """
    weight_map = read_index(folder)
    if weight_map is None:
        return {name: [] for name in unindexed(listed, folder)}
    files: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        if parts.wants(tensor):
            files.setdefault(name, []).append(tensor)
    return files


def missing_files(folder: Path, listed: Collection[str], parts: ModelParts) -> list[str]:
    """Names of the files and tensors of ``parts`` that ``folder`` lacks; ``listed`` are all files of the model.

    Raises:
        ModelError: the index, a safetensors file or its record is damaged.
    """
    needed = {"config.json", *(name for name in listed if parts.wants_file(name))}
    absent = sorted(name for name in needed if not (folder / name).is_file())
    if absent:
        return absent
    files = weight_files(folder, listed, parts)
    if not files and not (folder / INDEX).is_file():
        return ["model.safetensors"]
    for name, tensors in files.items():
        file = PartialFile.open(folder / name)
        if file is None:
            absent += tensors or [name]
        else:
            known = {place.name for place in file.places}
            absent += [*file.missing_tensors(parts.wants), *(tensor for tensor in tensors if tensor not in known)]
    return absent


def summary(names: Iterable[str]) -> str:
    """A short text for users about missing files and tensors: ``layers 4-7, embedding or head``."""
    layers: set[int] = set()
    words: list[str] = []
    for name in names:
        layer = layer_of(name)
        if layer is not None:
            layers.add(layer)
        elif name.endswith((".weight", ".scales", ".biases", ".bias")):
            words.append("embedding or head")
        else:
            words.append(name)
    if layers:
        span = LayerRange(min(layers), max(layers) + 1)
        words.insert(0, f"layers {span}" if len(span) == len(layers) else f"{len(layers)} layers of {span}")
    distinct = list(dict.fromkeys(words))
    return ", ".join(distinct[:4]) + (f" and {len(distinct) - 4} more" if len(distinct) > 4 else "")
