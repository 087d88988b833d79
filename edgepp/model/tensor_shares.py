"""Tensor parallelism: the part of every layer, and of the output head, that each rank of a stage computes.

A rank computes some key-value heads with their query heads, and some columns of the FFN. The linears after these
(``o_proj``, ``down_proj``) sum over the columns, so each rank gives a partial sum, and the ranks add up their partial
sums once after attention and once after the FFN. A quantisation group of these two linears is never cut. The ranks of a
last stage also share the output head: each computes the logits of some token ids.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgepp.errors import UsageError
from edgepp.model.config.model_config import ModelConfig

MAX_RANKS = 16
"""Limit of the number of ranks of a stage."""
MAX_WEIGHT = 1000
"""Limit of the weight of a rank, which is its share in proportion to the weights of all ranks."""

_IDS = 64
"""Token ids at whose multiples the output head is cut: kernels compute so many or fewer columns together, and a column
gets the same bits in a part as in the whole."""
_WORD = 32
"""Columns that fill whole 32-bit words at any number of bits, and the group of weights that a backend converts."""


@dataclass(frozen=True)
class TensorShare:
    """The part of every layer that ``rank`` computes: key-value heads with their query heads, and FFN columns."""

    rank: int
    kv_heads: range
    queries: range
    """Rows of ``q_proj``, and columns of ``o_proj``."""
    keys: range
    """Rows of ``k_proj`` and ``v_proj``."""
    ffn: range
    """Rows of ``gate_proj`` and ``up_proj``, and columns of ``down_proj``."""
    vocabulary: range
    """Token ids of which the rank computes the logits, where its stage is the last one: rows of the output head."""


@dataclass(frozen=True)
class TensorUnits:
    """The key-value heads and FFN columns of a layer, and the multiples at which ranks can share them."""

    kv_heads: int
    head_unit: int
    """Heads that stay together, since a quantisation group of ``o_proj`` spans them."""
    ffn: int
    ffn_unit: int
    """Columns that stay together: whole quantisation groups of ``down_proj``, and whole 32-bit words if possible."""

    @classmethod
    def of(cls, kv_heads: int, head_columns: int, ffn: int, group: int, ffn_group: int) -> TensorUnits:
        """Units of a layer with ``head_columns`` columns of ``o_proj`` per key-value head.

        ``o_proj`` and ``down_proj`` can be cut at multiples of ``group`` and ``ffn_group`` columns; 1 for anywhere.
        """
        ffn_unit = math.lcm(ffn_group, _WORD) if ffn % _WORD == 0 else ffn_group
        return cls(kv_heads, group // math.gcd(group, head_columns), ffn, ffn_unit)

    def cut_heads(self, weights: Sequence[int]) -> list[range]:
        """The key-value heads of each rank.

        Raises:
            UsageError: there are fewer parts than ranks, or equal ranks cannot have as many heads each.
        """
        return _cut(self.kv_heads, self.head_unit, weights, f"the model has {self.kv_heads} KV heads", equally=True)

    def cut_ffn(self, weights: Sequence[int]) -> list[range]:
        """The FFN columns of each rank.

        Raises:
            UsageError: there are fewer parts than ranks.
        """
        what = f"the model has {self.ffn} FFN columns in groups of {self.ffn_unit}"
        return _cut(self.ffn, self.ffn_unit, weights, what)


def quantised_unit(group_size: int) -> int:
    """Columns at whose multiples a linear with quantisation groups of ``group_size`` can be cut."""
    return math.lcm(group_size, _WORD)


def parse_weights(text: str) -> tuple[int, ...]:
    """Weights of the ranks: ``2`` for two equal ranks, ``5:3`` for two ranks that share as 5 to 3.

    Raises:
        UsageError: the text has another form, or gives too many ranks or a weight out of range.
    """
    if re.fullmatch(r"[0-9]{1,4}", text):
        return check_weights((1,) * min(int(text), MAX_RANKS + 1))
    if not re.fullmatch(r"[0-9]{1,4}(:[0-9]{1,4})+", text):
        raise UsageError(f"'{text:.40}' gives no ranks", "write their number, like 2, or their shares, like 5:3")
    return check_weights(tuple(map(int, text.split(":"))))


def check_weights(weights: Sequence[int]) -> tuple[int, ...]:
    """``weights`` of the ranks of a stage, checked.

    Raises:
        UsageError: there are none or too many, or a weight is out of range.
    """
    if not 1 <= len(weights) <= MAX_RANKS:
        raise UsageError(f"a stage has 1 to {MAX_RANKS} ranks")
    if not all(1 <= weight <= MAX_WEIGHT for weight in weights):
        raise UsageError(f"the shares {_text(weights)} are out of range", f"write 1 to {MAX_WEIGHT} for each rank")
    return tuple(weights)


def share_out(model: ModelConfig, weights: Sequence[int]) -> tuple[TensorShare, ...]:
    """The shares of ranks that work in proportion to ``weights``, in rank order; together they are the whole layer.

    Heads and FFN are each shared in proportion, as near as whole heads and groups allow: all ranks wait for each other
    after attention and after the FFN, so a larger share of one does not make up for a smaller share of the other.

    Raises:
        UsageError: the family cannot be shared; there are fewer heads or groups than ranks; or equal ranks cannot have
            as many heads each. The hint gives the nearest shares that work.
    """
    check_weights(weights)
    if not model.plain:
        raise UsageError(
            f"the layers of {model.name} (family '{model.family}') cannot be shared between ranks",
            "leave --tensor out, or choose a model of family llama, mistral, qwen2 or qwen3",
        )
    head_columns = model.heads // model.kv_heads * model.head_dim
    group, ffn_group = _group(model, "self_attn.o_proj"), _group(model, "mlp.down_proj")
    units = TensorUnits.of(model.kv_heads, head_columns, model.ffn, group, ffn_group)
    what = f"{model.name} has {model.kv_heads} KV heads"
    if units.head_unit > 1:
        what += f" of {head_columns} columns, quantised in groups of {group}"
    heads = _cut(model.kv_heads, units.head_unit, weights, what, equally=True)
    what = f"{model.name} has {model.ffn} FFN columns in groups of {units.ffn_unit}"
    columns = _cut(model.ffn, units.ffn_unit, weights, what)
    unit = _IDS if model.vocab_size >= _IDS * len(weights) else 1
    vocabulary = _cut(model.vocab_size, unit, weights, f"{model.name} has {model.vocab_size} token ids")
    return tuple(
        TensorShare(rank, kv_heads, _scaled(kv_heads, head_columns), _scaled(kv_heads, model.head_dim), ffn, ids)
        for rank, (kv_heads, ffn, ids) in enumerate(zip(heads, columns, vocabulary, strict=True))
    )


def apportion(units: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Parts of ``units`` in proportion to ``weights``, at least 1 each; ``units`` is at least the number of weights."""
    ideal = [units * weight / sum(weights) for weight in weights]
    counts = [1] * len(weights)
    for _ in range(units - len(weights)):
        counts[max(range(len(weights)), key=lambda rank: ideal[rank] - counts[rank])] += 1
    return tuple(counts)


def _cut(total: int, unit: int, weights: Sequence[int], what: str, *, equally: bool = False) -> list[range]:
    """Cut ``[0, total)`` in proportion to ``weights`` at multiples of ``unit``; ``what`` is being cut, for errors.

    ``equally``: whether ranks of equal weights must get equal parts.
    """
    units, ranks = -(-total // unit), len(weights)
    if units < ranks:
        raise UsageError(
            f"{what}, which {ranks} ranks cannot share: there are only {units} parts",
            f"use {units} ranks or fewer" if units > 1 else "leave --tensor out",
        )
    if equally and len(set(weights)) == 1 and units % ranks:
        fewer = max(n for n in range(1, ranks) if units % n == 0)
        instead = f"{fewer} ranks, or " if fewer > 1 else ""
        raise UsageError(
            f"{what}, which {ranks} ranks cannot share equally",
            f"use {instead}unequal shares: --tensor {_text(apportion(units, weights))}",
        )
    ranges, start = [], 0
    for count in apportion(units, weights):
        stop = min(total, start + count * unit)
        ranges.append(range(start, stop))
        start = stop
    return ranges


def _group(model: ModelConfig, linear: str) -> int:
    """Columns of ``linear`` at whose multiples it can be cut in every layer; 1 where it is not quantised."""
    found = {model.quantisations.of(f"model.layers.{layer}.{linear}") for layer in range(model.num_layers)}
    sizes = [one.group_size for one in found if one is not None]
    return math.lcm(*map(quantised_unit, sizes)) if sizes else 1


def _scaled(part: range, factor: int) -> range:
    return range(part.start * factor, part.stop * factor)


def _text(weights: Sequence[int]) -> str:
    return ":".join(map(str, weights))
