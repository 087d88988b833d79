"""Events: every class is in the union, and its text is one line for people."""

from __future__ import annotations

import dataclasses
import inspect
from typing import get_args

import pytest

from edgepp.events import (
    AssignmentChanged,
    ClusterLeft,
    Event,
    LayersNotLoaded,
    NodeJoined,
    NodeRefused,
    PlanKept,
    PlanMade,
    of_coordinator,
    of_node,
)
from edgepp.layer_range import LayerRange

HALVES = ((LayerRange(0, 15), "one"), (LayerRange(15, 30), "two"))


def test_every_event_is_a_frozen_member_of_the_union() -> None:
    made = {
        kind
        for module in (of_coordinator, of_node)
        for _, kind in inspect.getmembers(module, dataclasses.is_dataclass)
        if kind.__module__ == module.__name__
    }
    assert made == set(get_args(Event))
    assert all(vars(kind)["__dataclass_params__"].frozen for kind in made)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (NodeJoined("two", "10.0.0.2", 8_000_000_000, "onnx"), "two joined from 10.0.0.2 with 8.0 GB (onnx)"),
        (NodeRefused("two", "10.0.0.2", "revoked"), "refused two at 10.0.0.2: revoked"),
        (NodeRefused("two", "h", "full", by_token=True), "refused two at h, which has a token: full"),
        (PlanMade(3, HALVES), "plan 3: layers 0-14 on one, layers 15-29 on two"),
        (PlanMade(3, HALVES[:1], "two is gone"), "plan 3: layers 0-14 on one; two is gone"),
        (PlanKept(3, "two is full"), "plan 3 stays: two is full"),
        (PlanKept(None, "no node has joined yet"), "no node has joined yet"),
        (LayersNotLoaded("two", "it died", ""), "two cannot run its layers: it died"),
        (LayersNotLoaded("two", "it died", "lower --memory"), "two cannot run its layers: it died; lower --memory"),
        (AssignmentChanged("m", (LayerRange(0, 15),), ""), "this machine runs layers 0-14 of m"),
        (AssignmentChanged("m", (), "it is too small"), "this machine runs no layers: it is too small"),
        (ClusterLeft("one"), "this machine has left the cluster of one, because `edgepp leave` ran here"),
        (ClusterLeft("one", ended=True), "the cluster has ended, because `edgepp leave` ran on this machine"),
    ],
    ids=str,
)
def test_an_event_is_one_line(event: Event, text: str) -> None:
    assert str(event) == text
