"""Stages that do not belong together are refused at the handshake: never an answer of the wrong tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgpack
import pytest

from edgepp.errors import PlanError, StageLost
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY
from edgepp.wire.messages import VERSION, Message
from edgepp.wire.messages.control import Welcome
from tests.builders.checkpoints import Checkpoints
from tests.faults.lone_stages import LoneStages, lone_stages
from tests.faults.proxy import Damage, Frames

LOW, HIGH = LayerRange(0, 2), LayerRange(2, 4)


def welcomes(message: Message) -> bool:
    return isinstance(message, Welcome)


def changed(change: Callable[[list[object]], None]) -> Callable[[Frames], list[Frames]]:
    """Change the fields of a header, which begin with version and kind."""

    def act(frames: Frames) -> list[Frames]:
        fields = list(msgpack.unpackb(frames[0]))
        change(fields)
        return [[msgpack.packb(fields), *frames[1:]]]

    return act


def put(name: str, value: object) -> Callable[[list[object]], None]:
    """Set a field of ``Welcome``."""
    return lambda fields: fields.__setitem__(2 + Welcome._fields.index(name), value)


def older(fields: list[object]) -> None:
    fields[0] = VERSION - 1


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (older, StageLost, "speaks protocol version"),
        (put("start", 1), PlanError, "layer 1 is held twice"),
        (put("start", 3), PlanError, "layers 2-2 are missing|layer 2 is missing"),
        (put("fingerprint", "0" * 16), PlanError, "runs another model"),
        (put("exact", False), PlanError, "does not compute exactly"),
    ],
    ids=["version", "overlap", "gap", "model", "exact"],
)
def test_a_stage_that_does_not_fit_is_refused_by_name(
    checkpoints: Checkpoints, change: Callable[[list[object]], None], kind: type[Exception], reason: str
) -> None:
    with lone_stages(checkpoints(), LOW, HIGH) as stages:
        with stages.behind_proxies() as proxies:
            proxies[1].damage = Damage("out", welcomes, changed(change), range(99))
            with pytest.raises(kind, match=reason):
                stages.open_engine(proxied=True)
        stages.hold_nothing()


def test_another_training_of_the_same_architecture_is_refused_with_its_layers(checkpoints: Checkpoints) -> None:
    ours, theirs = checkpoints(seed=0), checkpoints(seed=1)
    with lone_stages(ours, LOW) as low, lone_stages(theirs, HIGH) as high:
        both = LoneStages(ours, [*low.handles, *high.handles], [])
        both.addresses = [*low.addresses, *high.addresses]
        with pytest.raises(PlanError, match="another training of the model: layers 0-3 and embedding") as refused:
            both.open_engine()
        both.hold_nothing()
    assert str(high.addresses[0]) in str(refused.value)
    assert {str(ours), str(theirs)} <= set(str(refused.value).split())


def test_the_same_architecture_with_other_weight_bits_is_refused(checkpoints: Checkpoints) -> None:
    ours, theirs = checkpoints(), checkpoints(dataclasses.replace(TINY, dtype="bfloat16"))
    with lone_stages(ours, LOW) as low, lone_stages(theirs, HIGH) as high:
        both = LoneStages(ours, [*low.handles, *high.handles], [])
        both.addresses = [*low.addresses, *high.addresses]
        with pytest.raises(PlanError, match="runs another model"):
            both.open_engine()
