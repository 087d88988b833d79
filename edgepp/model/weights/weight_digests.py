"""Digests of the weights in a folder, one per layer: folders of one architecture with different weights differ in them.

A digest is made of names, dtypes, shapes and a small sample of each tensor's bytes, since hashing whole tensors would
take as long as loading them. Training changes all values of a tensor, so the sample tells two trainings apart; it does
not find a file in which single values were changed. The bytes are those of the file, whatever a backend makes of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.bounded_files import open_regular, unreadable
from edgepp.model.weights.checkpoint import Checkpoint, layer_of
from edgepp.model.weights.safetensors_header import TensorPlace

MAX_DIGESTS = 256
"""Limit of the number of digests of a folder: layers from 255 on have no digest."""
SAMPLE_BYTES = 1 << 11
"""Bytes of each sample of a tensor: at its beginning, and in its middle, where an embedding has no padding."""

ABSENT = 0
"""Value in place of the digest of a layer that is not whole on this disk."""


def weight_digests(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Digests of 32 bits: of the tensors outside the layers, then of each layer; ``ABSENT`` where tensors are missing.

    Raises:
        ModelError: a file cannot be read, or has become shorter.
    """
    count = min(1 + checkpoint.num_layers, MAX_DIGESTS)
    parts: list[list[str]] = [[] for _ in range(count)]
    for name in checkpoint.used_names:
        layer = layer_of(name)
        part = 0 if layer is None else 1 + layer
        if part < count:
            parts[part].append(name)
    with ExitStack() as opened:
        files: dict[Path, BinaryIO] = {}
        digests = []
        for names in parts:
            places = [checkpoint.tensors[name] for name in names if name in checkpoint.tensors]
            for file in {place.file for place in places}.difference(files):
                files[file] = opened.enter_context(open_regular(file))
                if hasattr(os, "posix_fadvise"):  # else the system reads far more than the samples
                    os.posix_fadvise(files[file].fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            digests.append(_digest(places, files) if names and len(places) == len(names) else ABSENT)
    return tuple(digests)


def _digest(places: Iterable[TensorPlace], files: dict[Path, BinaryIO]) -> int:
    found = hashlib.sha256()
    for place in sorted(places, key=lambda place: place.name):
        found.update(f"{place.name} {place.dtype} {place.shape}\n".encode())
        for start, nbytes in _samples(place):
            try:
                sample = os.pread(files[place.file].fileno(), nbytes, start)
            except OSError as error:
                raise unreadable(place.file, error) from error
            if len(sample) < nbytes:
                raise ModelError(f"{place.file} ends before the tensor {place.name}", "pull the model again")
            found.update(sample)
    return int.from_bytes(found.digest()[:4], "little") or 1


def _samples(place: TensorPlace) -> Sequence[tuple[int, int]]:
    """(Offset in the file, bytes) of each sample of a tensor; the only sample of a small tensor is the whole tensor."""
    if place.nbytes <= 2 * SAMPLE_BYTES:
        return [(place.start, place.nbytes)]
    middle = max(SAMPLE_BYTES, place.nbytes // 2)
    return [(place.start, SAMPLE_BYTES), (place.start + middle, min(SAMPLE_BYTES, place.nbytes - middle))]


def differing(one: Sequence[int], other: Sequence[int]) -> tuple[LayerRange | None, bool]:
    """The layers in which two folders differ, from the first to the last, and whether they differ outside the layers.

    A layer that one of the folders lacks is not compared.
    """
    apart = [i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b and ABSENT not in (a, b)]
    layers = [part - 1 for part in apart if part]
    return LayerRange(layers[0], layers[-1] + 1) if layers else None, 0 in apart


def difference(one: Sequence[int], other: Sequence[int]) -> str:
    """The parts in which two folders differ, such as ``layers 0-3 and embedding or head``; empty where they do not."""
    layers, ends = differing(one, other)
    parts = [f"layer{'s' if len(layers) > 1 else ''} {layers}"] if layers is not None else []
    return " and ".join([*parts, "embedding or head"] if ends else parts)
