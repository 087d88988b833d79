"""Whether the ranks of a stage fit each other: all must compute with weights of one training of the model. Pure."""

from __future__ import annotations

from edgepp.errors import ModelError
from edgepp.model.weights.weight_digests import difference
from edgepp.wire.messages.ranks import RankJoined


def misfit(joined: RankJoined, mine: RankJoined) -> ModelError | None:
    """Why the rank that has ``joined`` does not fit this one, which greets with ``mine``; None where it does."""
    parts = difference(joined.weights, mine.weights)
    if not parts:
        return None
    return ModelError(
        f"rank {joined.rank} of the stage has another training of the model: {parts} in its folder {joined.folder}"
        f" differ from {mine.folder} here",
        "put the same files into both folders, or pull the same model on both machines",
    )
