"""The shape of a model: from its card, or from its configuration where the model has no card."""

from __future__ import annotations

from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.bounded_files import shown
from edgepp.model.catalogue.cards import DTYPE_BYTES, Shape
from edgepp.model.catalogue.source import LocalFolder, resolve
from edgepp.model.config.model_config import ModelConfig
from edgepp.model.weights.checkpoint import Checkpoint


def shape_of(model: str, checkpoint: Checkpoint) -> Shape:
    """The shape of ``model``: its card, or else the shape of a Llama with the sizes in its ``config.json``.

    Raises:
        ModelError: the configuration lacks a size.
    """
    source = resolve(model)
    card = None if isinstance(source, LocalFolder) else source.card
    if card is not None:
        return card
    return shape_from_config(checkpoint.settings)


def shape_from_config(settings: ModelConfig) -> Shape:
    """The shape with the sizes of a configuration.

    Raises:
        ModelError: the configuration lacks a size.
    """
    for key, size in (("num_attention_heads", settings.heads), ("intermediate_size", settings.ffn)):
        if not size:
            raise ModelError(f"config.json of {settings.name} has no usable {key}", "placement needs it")
    usual = settings.quantisations.usual
    embedding = settings.quantisations.of("model.embed_tokens")
    return Shape(
        family=settings.family,
        layers=settings.num_layers,
        heads=settings.heads,
        kv_heads=settings.kv_heads,
        head_size=settings.head_dim,
        hidden=settings.hidden_size,
        ffn=settings.ffn,
        vocabulary=settings.vocab_size,
        tied=settings.tied,
        context=settings.context,
        dtype=settings.dtype if settings.dtype in DTYPE_BYTES else "float16",
        bits=usual.bits if usual else None,
        group_size=usual.group_size if usual else None,
        embedding_bits=embedding.bits if usual and embedding and embedding != usual else None,
    )


def refuse_unused_tensors(checkpoint: Checkpoint, layers: LayerRange) -> None:
    """Refuse tensors in ``layers`` of a plain family that its configuration does not use, such as biases.

    Raises:
        ModelError: there is such a tensor; without the tensor, the answers would be those of another model.
    """
    settings = checkpoint.settings
    if not settings.plain:
        return
    shape = shape_from_config(settings)
    used = {*shape.layer_vectors(), "self_attn.rotary_emb.inv_freq"}
    for module in shape.layer_matrices():
        parts = ("weight", "scales", "biases", *(["bias"] if module.rpartition(".")[2] in settings.biased else []))
        used.update(f"{module}.{part}" for part in parts)
    for name in checkpoint.layer_names(layers):
        inner = name.partition("layers.")[2].partition(".")[2]
        if inner not in used:
            raise ModelError(
                f"{settings.name} has a tensor {shown(name)}, which models of family {settings.family} with its"
                " config.json do not use",
                "take the model from where it was published",
            )
