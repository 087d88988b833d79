"""The check that the stages of a pipeline, and the coordinator, have weights of one training of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.weight_digests import difference, weight_digests


@dataclass(frozen=True)
class Holder:
    """A model folder of a machine."""

    name: str
    """Whose folder it is, such as ``this machine`` or the name of a stage."""
    folder: str
    weights: Sequence[int]
    """As ``weight_digests`` gives them; empty where they are not known."""


@dataclass
class PipelineWeights:
    """The weights with which a pipeline computes: those of the coordinator, and of all stages that it has had.

    A stage that takes the place of another must have the same weights, since the keys and values of the sequences come
    from them.
    """

    own: Holder
    _run: dict[int, Holder] = field(default_factory=dict)
    """For each layer the stage that was the first to run it."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> PipelineWeights:
        """Begin with the weights in this machine's folder, which may be a part of the model.

        Raises:
            ModelError: a file of the folder cannot be read.
        """
        return cls(Holder("this machine", str(checkpoint.path), weight_digests(checkpoint)))

    def check(self, stages: Sequence[tuple[LayerRange, Holder]]) -> None:
        """Check the stages, each with the layers that it runs, against all others; remember them if they fit.

        Raises:
            PlanError: two of them have different weights; the sentence names the layers and both folders.
        """
        known = [self.own, *{holder.name: holder for holder in self._run.values()}.values()]
        for _, stage in stages:
            for other in known:
                _check_pair(stage, other)
            known.append(stage)
        for layers, stage in stages:
            for layer in range(layers.start, layers.stop):
                self._run.setdefault(layer, stage)


def _check_pair(stage: Holder, other: Holder) -> None:
    if not (parts := difference(stage.weights, other.weights)):
        return
    raise PlanError(
        f"{stage.name} has another training of the model: {parts} in its folder {stage.folder} differ"
        f" from {other.folder} of {other.name}",
        "put the same files into both folders, or pull the same model on both machines, and start that stage again",
    )
