"""A folder in mlx-lm format: its configuration, and every tensor's place in its safetensors files.

Nothing here reads weights until ``array`` is called, and that maps the file instead of copying it. The headers come
from the network, so each length is checked against the file, the shape and the dtype before it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgepp.errors import ModelError
from edgepp.layers import LayerRange

Array = npt.NDArray[Any]

DTYPES: Mapping[str, npt.DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""Safetensors dtype names that a checkpoint may use."""

PARTIAL_SUFFIX = ".partial.json"
"""``model.safetensors.partial.json`` lists the tensors that a partly fetched file really holds."""

_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor lies: ``nbytes`` bytes from ``start`` in ``file``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int


@dataclass(frozen=True)
class Quantisation:
    """MLX affine quantisation of one linear: ``bits`` a weight, one scale and bias a group along the input."""

    bits: int
    group_size: int


@dataclass(frozen=True)
class Checkpoint:
    """One model folder; ``tensors`` holds only what is on this disk, which may be a part of the model."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorPlace] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the configuration and the safetensors headers of ``path``.

        Raises:
            ModelError: the folder is not a model, is damaged, or wants to run code of its own.
        """
        config = _read_json(path / "config.json")
        for key in ("auto_map", "model_file"):
            if key in config:
                raise ModelError(
                    f"{path.name} wants to run code of its own ({key} in config.json), which edgepp never does",
                    "use a model of a family that mlx-lm knows",
                )
        tensors: dict[str, TensorPlace] = {}
        for file in sorted(path.glob("*.safetensors")):
            tensors.update((place.name, place) for place in read_header(file))
        return cls(path, config, tensors)

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's configuration; multimodal families keep it one level down."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) and "num_hidden_layers" in inner else self.config

    @property
    def family(self) -> str:
        """mlx-lm's name of the architecture, such as ``llama``."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self._size("num_hidden_layers")

    @property
    def hidden_size(self) -> int:
        """Width D of a hidden state."""
        return self._size("hidden_size")

    @property
    def vocab_size(self) -> int:
        """Number of token ids V."""
        return self._size("vocab_size")

    @property
    def context(self) -> int:
        """The most positions a sequence may have."""
        value = self.text_config.get("max_position_embeddings")
        return int(value) if isinstance(value, int) and value > 0 else 4096

    def _size(self, key: str) -> int:
        value = self.text_config.get(key)
        if not isinstance(value, int) or not 0 < value < 2**31:
            raise ModelError(f"config.json of {self.path.name} has no usable {key}")
        return value

    def layer_names(self, layers: LayerRange) -> list[str]:
        """Names of the tensors on this disk that belong to decoder layers ``layers``."""
        return [name for name in self.tensors if (n := layer_of(name)) is not None and n in layers]

    def layer_bytes(self, layers: LayerRange) -> int:
        """Stored bytes of decoder layers ``layers``."""
        return sum(self.tensors[name].nbytes for name in self.layer_names(layers))

    def require(self, layers: LayerRange) -> None:
        """Check that the range lies in the model and each of its layers is complete on this disk.

        A layer counts as complete when it has the tensors that the fullest layer at hand has; the backends check
        names again against the architecture.

        Raises:
            ModelError: which layers are absent.
        """
        if layers.stop > self.num_layers:
            raise ModelError(f"layers {layers} lie outside {self.path.name}, which has layers 0-{self.num_layers - 1}")
        found = {n for name in self.tensors if (n := layer_of(name)) is not None}
        absent = [n for n in range(layers.start, layers.stop) if n not in found]
        if absent:
            raise ModelError(
                f"{self.path} lacks the tensors of layer {', '.join(map(str, absent[:5]))}",
                "fetch them with `edgepp models pull`",
            )

    def quantisation(self, module: str) -> Quantisation | None:
        """How the linear or embedding ``module`` is quantised; None where it is not.

        Raises:
            ModelError: it is quantised in a mode other than MLX's affine one.
        """
        if f"{module}.scales" not in self.tensors:
            return None
        settings = self.config.get("quantization") or self.config.get("quantization_config") or {}
        own = settings.get(module)
        merged = {**settings, **own} if isinstance(own, dict) else settings
        mode = merged.get("mode", "affine")
        if mode != "affine":
            raise ModelError(f"{module} is quantised in mode '{mode}'; this backend reads only affine weights")
        try:
            return Quantisation(int(merged["bits"]), int(merged["group_size"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"config.json of {self.path.name} does not say how {module} is quantised") from error

    def array(self, name: str) -> Array:
        """The tensor as a read-only view of the mapped file: no bytes are read until they are used.

        Raises:
            ModelError: this disk does not hold it.
        """
        place = self.tensors.get(name)
        if place is None:
            raise ModelError(f"{self.path.name} has no tensor {name} on this disk")
        mapped = self._mapped(place.file)
        raw = mapped[place.start : place.start + place.nbytes]
        return raw.view(DTYPES[place.dtype]).reshape(place.shape)

    def _mapped(self, file: Path) -> Array:
        if file not in self._maps:
            self._maps[file] = np.memmap(file, np.uint8, "r")
        return self._maps[file]

    @cached_property
    def _maps(self) -> dict[Path, Array]:
        return {}

    @property
    def commit(self) -> str:
        """The hub commit that this folder is a snapshot of, read off its path; empty where there is none."""
        return next((part for part in self.path.parts if _COMMIT.fullmatch(part)), "")

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that two copies of one model share, also where each holds other layers.

        Made of the configuration and the names in the weight index (or in the only file's header). It does not tell
        apart two trainings of one architecture; ``commit`` does.
        """
        digest = hashlib.sha256()
        digest.update(json.dumps(self.config, sort_keys=True).encode())
        index = self.path / "model.safetensors.index.json"
        names = sorted(_read_json(index).get("weight_map", {})) if index.is_file() else sorted(self._all_names())
        digest.update("\n".join(names).encode())
        return digest.hexdigest()[:16]

    def _all_names(self) -> Iterator[str]:
        for file in self.path.glob("*.safetensors"):
            yield from (place.name for place in read_header(file, whole=True))


def layer_of(tensor: str) -> int | None:
    """The decoder layer that a tensor name belongs to; None for embedding, norm and head."""
    match = _LAYER.search(tensor)
    return int(match[1]) if match else None


def parse_header(raw: bytes, file: Path, file_bytes: int) -> list[TensorPlace]:
    """Read a safetensors header, ``raw`` being the JSON behind the eight length bytes.

    Raises:
        ModelError: an entry is malformed or points outside the file.
    """
    try:
        entries = json.loads(raw)
        base = 8 + len(raw)
        places = []
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            place = TensorPlace(name, entry["dtype"], shape, file, base + begin, end - begin)
            if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
                raise ValueError(f"{name} has a negative size")
            if math.prod(shape) * np.dtype(DTYPES[place.dtype]).itemsize != place.nbytes:
                raise ValueError(f"{name}'s bytes do not match its shape")
            if base + end > file_bytes:
                raise ValueError(f"{name} lies outside the file")
            places.append(place)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file.name} is damaged: {error}", "delete it and pull the model again") from error
    return places


def read_header(file: Path, *, whole: bool = False) -> list[TensorPlace]:
    """The places of the tensors that ``file`` holds; ``whole`` lists also those not yet fetched.

    Raises:
        ModelError: the file is no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
            raise ModelError(f"{file.name} is not a safetensors file", "delete it and pull the model again")
        places = parse_header(stream.read(length), file, size)
    partial = file.with_name(file.name + PARTIAL_SUFFIX)
    if whole or not partial.is_file():
        return places
    held = set(_read_json(partial).get("tensors", ()))
    return [place for place in places if place.name in held]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(
            f"{path.parent} is not a model in mlx-lm format: it has no {path.name}",
            "see `edgepp models list` for names that work",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return value
