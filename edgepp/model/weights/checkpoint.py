"""A checkpoint: a folder in mlx-lm format with its configuration and the place of every tensor.

Weights are not read until ``array`` is called, which maps the file instead of copying.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.bounded_files import open_regular, read_object
from edgepp.model.config.mlx_only import canonical, has_head
from edgepp.model.config.model_config import ModelConfig
from edgepp.model.config.quantisation import Quantisation
from edgepp.model.weights.safetensors_header import DTYPES, PARTIAL_SUFFIX, TensorPlace, parse_header, read_header
from edgepp.model.weights.weight_files import INDEX, SINGLE, missing_of_numbered_set, read_tensors, regular_files

__all__ = [
    "DTYPES", "PARTIAL_SUFFIX", "Array", "Checkpoint", "Quantisation", "TensorPlace", "is_of_head", "layer_of",
    "parse_header", "read_header",
]  # fmt: skip

Array = npt.NDArray[Any]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")


@dataclass(frozen=True)
class Checkpoint:
    """A model folder; ``tensors`` are those on this disk, which may be a part of the model."""

    path: Path
    config: Mapping[str, Any]
    """config.json as it is in the file; ``settings`` is its checked and typed form."""
    tensors: Mapping[str, TensorPlace] = field(repr=False)
    known: frozenset[str] = field(default=frozenset(), repr=False)
    """Names of all tensors of the model, from the index or the headers, on this disk or not."""

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the configuration and the safetensors headers of ``path``.

        Raises:
            ModelError: the folder is not a model, is damaged, asks for an unsupported computation, or wants to run code
                of its own.
        """
        config = read_config(path)
        checkpoint = cls(path, config, *read_tensors(path))
        checkpoint._check_layers()
        return checkpoint

    def _check_layers(self) -> None:
        """Check the number of layers against the tensor names, if the names of all tensors are known."""
        if not any((self.path / name).is_file() for name in (INDEX, SINGLE)):
            self.settings  # noqa: B018 - the property checks the configuration
            return
        numbers = [n for name in self.known if (n := layer_of(name)) is not None]
        if numbers and self.num_layers > max(numbers) + 1:
            raise ModelError(
                f"config.json of {self.path.name} gives {self.num_layers} layers (num_hidden_layers), but there are"
                f" weights of {max(numbers) + 1}",
                "take the file from where the model was published",
            )

    @cached_property
    def settings(self) -> ModelConfig:
        """The checked configuration.

        Raises:
            ModelError: a value is unusable, or asks for an unsupported computation.
        """
        return ModelConfig.read(self.path.name, self.config, self.known)

    @property
    def family(self) -> str:
        """mlx-lm's name of the architecture, such as ``llama``."""
        return self.settings.family

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self.settings.num_layers

    @property
    def hidden_size(self) -> int:
        """Width D of a hidden state."""
        return self.settings.hidden_size

    @property
    def vocab_size(self) -> int:
        """Number of token ids V."""
        return self.settings.vocab_size

    @property
    def context(self) -> int:
        """Maximum number of positions of a sequence."""
        return self.settings.context

    def layer_names(self, layers: LayerRange) -> list[str]:
        """Names of the tensors of decoder layers ``layers`` on this disk."""
        return [name for name in self.tensors if (n := layer_of(name)) is not None and n in layers]

    def layer_bytes(self, layers: LayerRange) -> int:
        """Stored bytes of the tensors of decoder layers ``layers`` on this disk."""
        return sum(self.tensors[name].nbytes for name in self.layer_names(layers))

    def require(self, layers: LayerRange) -> None:
        """Check that the model has ``layers``, and that tensors of each of them are on this disk.

        The backends check that each layer has all of its tensors.

        Raises:
            ModelError: layers are outside the model, or not on this disk; the sentence names them.
        """
        if layers.stop > self.num_layers:
            raise ModelError(
                f"layers {layers} lie outside {self.path.name}, which has layers 0-{self.num_layers - 1}",
                "choose layers of the model",
            )
        found = {n for name in self.tensors if (n := layer_of(name)) is not None}
        absent = [n for n in range(layers.start, layers.stop) if n not in found]
        if absent:
            raise ModelError(
                f"{self.path} lacks the tensors of layer {', '.join(map(str, absent[:5]))}",
                "fetch them with `edgepp models pull`",
            )

    def require_embedding_and_head(self) -> None:
        """Check that every tensor outside the layers is on this disk.

        A missing head must not be mistaken for one that is tied to the embedding.

        Raises:
            ModelError: tensors or files are missing; the sentence names the first.
        """
        tied = self.settings.tied
        self._require({n for n in self.known if layer_of(n) is None and not (tied and has_head([n]))})

    @property
    def head_module(self) -> str:
        """The module of a plain model whose rows are the output head: the embedding where the two are tied."""
        return "model.embed_tokens" if self.settings.tied else "lm_head"

    def require_head(self) -> None:
        """Check that final norm and output head of a plain model are on this disk.

        Raises:
            ModelError: tensors or files are missing; the sentence names the first.
        """
        self._require({name for name in self.known if is_of_head(name, self.head_module)})

    def _require(self, outside: Collection[str]) -> None:
        """Check that these tensors ``outside`` the layers are on this disk, and that all files of the model are."""
        absent = sorted(name for name in outside if name not in self.tensors)
        if not absent and not (self.path / INDEX).is_file() and self.config.get("tie_word_embeddings") is None:
            absent = missing_of_numbered_set(regular_files(self.path))
        if absent:
            raise ModelError(
                f"{self.path} lacks {len(absent)} tensors outside the layers, among them {absent[0]}",
                "fetch them with `edgepp models pull`",
            )
        if not self.settings.tied and not has_head(self.known) and self.settings.plain:
            raise ModelError(
                f"config.json of {self.path.name} gives an output head of its own (tie_word_embeddings is false), but"
                " there is no lm_head.weight",
                "take the model from where it was published",
            )

    @property
    def has_head(self) -> bool:
        """Whether final norm and output head of a plain model are on this disk."""
        try:
            self.require_head()
        except ModelError:
            return False
        return True

    def quantisation(self, module: str) -> Quantisation | None:
        """The affine quantisation of the linear or embedding ``module``; None where it is not quantised.

        Raises:
            ModelError: the module is quantised in another mode, or its quantisation is not in the configuration.
        """
        if f"{module}.scales" not in self.tensors:
            return None
        found = self.settings.quantisations.of(module)
        if found is None:
            raise ModelError(f"config.json of {self.path.name} does not say how {module} is quantised")
        if found.mode != "affine":
            raise ModelError(
                f"{module} is quantised in mode '{found.mode}', and this backend reads only affine weights",
                "use --backend mlx, or a model whose weights are quantised in mode affine",
            )
        return found

    def array(self, name: str) -> Array:
        """The tensor ``name`` in its stored shape and dtype: a read-only view of the mapped file, read when used.

        Raises:
            ModelError: the tensor is not on this disk.
        """
        place = self.tensors.get(name)
        if place is None:
            raise ModelError(
                f"{self.path.name} has no tensor {name} on this disk", "fetch it with `edgepp models pull`"
            )
        mapped = self._mapped(place.file)
        raw = mapped[place.start : place.start + place.nbytes]
        return raw.view(DTYPES[place.dtype]).reshape(place.shape)

    def _mapped(self, file: Path) -> Array:
        if file not in self._maps:
            try:
                with open_regular(file) as stream:
                    self._maps[file] = np.asarray(np.memmap(stream, np.uint8, "r"))
            except (OSError, ValueError) as error:
                raise ModelError(f"{file} cannot be read: {error}", "pull the model again") from error
        return self._maps[file]

    @cached_property
    def _maps(self) -> dict[Path, Array]:
        return {}

    @property
    def commit(self) -> str:
        """The hub commit of this folder, taken from its path; empty where there is none."""
        return next((part for part in self.path.parts if _COMMIT.fullmatch(part)), "")

    @property
    def used_names(self) -> frozenset[str]:
        """Names of the tensors that take part in the computation, on this disk or not."""
        unused = {name for name in self.known if name.endswith(".rotary_emb.inv_freq")}
        if self.settings.tied:
            unused |= {name for name in self.known if has_head([name])}
        return self.known - unused

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that all copies of a model share, also partial copies with different layers.

        A hash of the normalised configuration and of the names of the tensors that take part. Two trainings of one
        architecture have the same fingerprint; ``weight_digests`` tells them apart.
        """
        settings = self.settings
        values = {**canonical(settings.values), "dtype": settings.dtype}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        digest.update("\n".join(sorted(self.used_names)).encode())
        return digest.hexdigest()[:16]


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object of config.json in the folder ``path``.

    Raises:
        ModelError: there is no such file, or it is damaged.
    """
    try:
        return read_object(path / "config.json")
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} is not a model in mlx-lm format: it has no config.json",
            "see `edgepp models list` for names that work",
        ) from error


def is_of_head(tensor: str, module: str) -> bool:
    """Whether a tensor belongs to the final norm, or to ``module``, the output head, of a plain model."""
    return tensor.startswith((f"{module}.", "model.norm."))


def layer_of(tensor: str) -> int | None:
    """The decoder layer that a tensor name belongs to; None for embedding, norm and head."""
    match = _LAYER.search(tensor)
    return int(match[1]) if match else None
