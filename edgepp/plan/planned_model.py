"""Sizes of the model to plan for, from its card or from its configuration on this disk. Uses no network."""

from __future__ import annotations

import re
from dataclasses import replace

from edgepp.errors import ModelError
from edgepp.model.catalogue.cards import Card, Shape
from edgepp.model.catalogue.source import LocalFolder, resolve
from edgepp.plan.machines import Model

_PRECISION = re.compile("-(bf16|[48]bit)$")
"""End of a card's name that tells the precisions of one model apart."""


def same_model(name: str, model: Model) -> bool:
    """Whether the model ``name`` of a cluster, at any revision, has the sizes of ``model``.

    A name that this machine does not know counts as another model.
    """
    try:
        size = read_model(name.partition("@")[0]).size
        return replace(size, kv_bytes=model.size.kv_bytes) == model.size
    except ModelError:
        return False


def read_model(name: str, kv_bits: int | None = None) -> Model:
    """The sizes of a card, of a hub repository that has a card or is on this disk, or of a folder.

    Keys and values are kept in ``kv_bits``, or as floats.

    Raises:
        ModelError: there is no such model, or nothing of it is on this disk.
    """
    return Model.of(*_named_shape(name), kv_bits)


def read_shape(name: str) -> tuple[str, Shape]:
    """The shape of a model in any precision, with its name; that of a card loses the precision.

    Raises:
        ModelError: as for ``read_model``.
    """
    found, shape = _named_shape(name)
    return (_PRECISION.sub("", found) if isinstance(shape, Card) else found), shape


def _named_shape(name: str) -> tuple[str, Shape]:
    source = resolve(name)
    if not isinstance(source, LocalFolder) and source.card is not None:
        return source.card.name, source.card
    from edgepp.model.fetch import find_local
    from edgepp.model.shape import shape_of
    from edgepp.model.weights.checkpoint import Checkpoint
    from edgepp.model.weights.model_parts import ModelParts

    path = source.path if isinstance(source, LocalFolder) else find_local(name, ModelParts())
    if path is None:
        raise ModelError(
            f"{name} has no card, and nothing of it is on this disk",
            "plan for a model of `edgepp models list` of the same size, or pull it and give its name again",
        )
    return name, shape_of(name, Checkpoint.open(path))
