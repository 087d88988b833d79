"""A model's shape from its own configuration, for models without a card."""

from __future__ import annotations

from typing import Any

from edgepp.errors import ModelError
from edgepp.model.cards import DTYPE_BYTES, Shape
from edgepp.model.checkpoint import Checkpoint
from edgepp.model.source import LocalFolder, resolve


def shape_of(model: str, checkpoint: Checkpoint) -> Shape:
    """The shape of ``model``: its card's, or what its ``config.json`` says of a Llama of these sizes.

    Raises:
        ModelError: the configuration lacks a size.
    """
    source = resolve(model)
    card = None if isinstance(source, LocalFolder) else source.card
    if card is not None:
        return card
    config = checkpoint.text_config

    def size(key: str, default: int | None = None) -> int:
        value = config.get(key, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise ModelError(f"config.json of {checkpoint.path.name} has no usable {key}", "placement needs it")
        return value

    settings: Any = checkpoint.config.get("quantization") or {}
    bits, group_size = settings.get("bits"), settings.get("group_size")
    heads, hidden = size("num_attention_heads"), checkpoint.hidden_size
    dtype = config.get("torch_dtype") or config.get("dtype")
    return Shape(
        family=checkpoint.family,
        layers=checkpoint.num_layers,
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_size=size("head_dim", hidden // heads),
        hidden=hidden,
        ffn=size("intermediate_size"),
        vocabulary=checkpoint.vocab_size,
        tied=config.get("tie_word_embeddings") is True,
        context=checkpoint.context,
        dtype=str(dtype) if dtype in DTYPE_BYTES else "float16",
        bits=bits if type(bits) is int else None,
        group_size=group_size if type(group_size) is int else None,
    )
