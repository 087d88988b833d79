"""The check that the stages of a ring make up the coordinator's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepp.engine.same_weights import PipelineWeights
from edgepp.engine.stage_handshake import Peer, blaming
from edgepp.errors import PlanError
from edgepp.layer_range import check_tiling


@dataclass(frozen=True)
class Expectation:
    """The coordinator's own copy of the model, which every stage must match."""

    model: str
    fingerprint: str
    num_layers: int
    hidden_size: int
    exact: bool
    commit: str = ""
    vocabulary: int = 0
    """Number of token ids, for a last stage that has the output head."""
    context: int = 0
    """Positions that a sequence may have; 0 where nobody looks at them."""
    weights: PipelineWeights | None = field(default=None, compare=False)
    """The weights that the pipeline has had; None where nobody looks at them."""


def check_plan(peers: Sequence[Peer], expected: Expectation) -> None:
    """Check that the stages are of the expected model, and that their layers cover it exactly once.

    Raises:
        PlanError: layers are missing or overlap, or a stage has another model, revision, training or precision.
        StageUnusable: such a stage is that of a cluster.
    """
    for peer in peers:
        with blaming(peer.endpoint):
            _check(peer, expected)
    check_tiling([peer.layers for peer in peers], expected.num_layers)
    if expected.weights is not None:
        expected.weights.check([(peer.layers, peer.holder) for peer in peers])


def _check(peer: Peer, expected: Expectation) -> None:
    if (peer.welcome.fingerprint, peer.welcome.num_layers) != (expected.fingerprint, expected.num_layers):
        raise PlanError(
            f"{peer} runs another model: {peer.welcome.model} ({peer.welcome.fingerprint}), not"
            f" {expected.model} ({expected.fingerprint})",
            f"restart it with -m {expected.model}",
        )
    if peer.welcome.commit and expected.commit and peer.welcome.commit != expected.commit:
        raise PlanError(
            f"{peer} has revision {peer.welcome.commit[:12]} of {expected.model}, but this machine has"
            f" {expected.commit[:12]}",
            f"start both with -m NAME@{expected.commit}",
        )
    if peer.welcome.hidden_size != expected.hidden_size:
        raise PlanError(f"{peer} sends hidden states of {peer.welcome.hidden_size} values")
    if expected.context and peer.welcome.context != expected.context:
        raise PlanError(
            f"{peer} holds sequences of {peer.welcome.context} positions, and not {expected.context} as"
            f" {expected.model} has",
            f"restart it with -m {expected.model}",
        )
    if expected.exact and not peer.welcome.exact:
        raise PlanError(f"{peer} does not compute exactly", "restart it with --exact, or chat without")
