"""The model that is planned for: its card, or the configuration of one that lies on this disk. Asks no network."""

from __future__ import annotations

from dataclasses import replace

from edgepp.errors import ModelError
from edgepp.model.source import LocalFolder, resolve
from edgepp.plan.machines import Model


def same_model(name: str, model: Model) -> bool:
    """Whether a cluster that says it runs ``name``, at whatever revision, runs a model of these weights.

    It counts as another one where this machine does not know the name.
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
        ModelError: there is no such model, or nothing of it is here.
    """
    source = resolve(name)
    if not isinstance(source, LocalFolder) and source.card is not None:
        return Model.of(source.card.name, source.card, kv_bits)
    from edgepp.model.checkpoint import Checkpoint
    from edgepp.model.fetch import Parts, located
    from edgepp.model.shapes import shape_of

    path = source.path if isinstance(source, LocalFolder) else located(name, Parts())
    if path is None:
        raise ModelError(
            f"{name} has no card, and nothing of it is on this disk",
            "plan for a model of `edgepp models list` of the same size, or pull it and give its name again",
        )
    return Model.of(name, shape_of(name, Checkpoint.open(path)), kv_bits)
