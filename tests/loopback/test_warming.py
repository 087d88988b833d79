"""Layers that are warmed: read once when the memory allows, never while a stage loads, and only those ordered last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.node import warming
from edgepp.node.warming import LayerWarmer
from edgepp.wire.messages.nodes import Warm
from tests.waiting import eventually

Logged = Callable[[str], None]


class Node:
    """Whether a stage loads, and how often that was asked."""

    def __init__(self) -> None:
        self.loads = False
        self.asked = 0
        self.script: dict[int, bool] = {}
        """At which question the answer changes, and to what."""

    def is_loading(self) -> bool:
        self.asked += 1
        self.loads = self.script.get(self.asked, self.loads)
        return self.loads


@pytest.fixture
def stages() -> Node:
    return Node()


@pytest.fixture
def warmer(stages: Node) -> Iterator[LayerWarmer]:
    made = LayerWarmer(stages.is_loading)
    made.start()
    yield made
    made.close()
    assert not made.is_alive()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Logged:
    """Waits for a line of the log."""
    caplog.set_level(logging.INFO, "edgepp.node")
    return lambda line: eventually(line, lambda: line in caplog.messages)


def done(model: Path, layers: str) -> str:
    num_bytes = Checkpoint.open(model).layer_bytes(LayerRange.parse(layers))
    return f"layers {layers} of {model}: {num_bytes / 1e6:.1f} MB are in the page cache"


def test_the_layers_that_are_ordered_are_read(warmer: LayerWarmer, tiny: Path, logged: Logged) -> None:
    warmer.warm(Warm(1, str(tiny), 1, 3))
    logged(done(tiny, "1-2"))


def test_every_byte_of_the_layers_is_read_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "_PIECE_BYTES", 1000)
    checkpoint = Checkpoint.open(tiny)
    pieces = list(warming._pieces(checkpoint, LayerRange(1, 3)))
    assert max(stop - start for _, (start, stop) in pieces) == 1000
    assert sum(stop - start for _, (start, stop) in pieces) == checkpoint.layer_bytes(LayerRange(1, 3))
    for name in checkpoint.layer_names(LayerRange(1, 3)):
        place = checkpoint.tensors[name]
        assert any(start <= place.start < stop for file, (start, stop) in pieces if file == place.file)


def test_a_load_comes_first(warmer: LayerWarmer, stages: Node, tiny: Path, logged: Logged) -> None:
    stages.loads = True
    warmer.warm(Warm(1, str(tiny), 0, 2))
    eventually("it looks whether a stage loads", lambda: stages.asked > 1)
    stages.loads = False
    logged(done(tiny, "0-1"))


def test_a_load_that_begins_meanwhile_comes_first(
    warmer: LayerWarmer, stages: Node, tiny: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "_PIECE_BYTES", 1000)
    stages.script = {3: True, 5: False}
    warmer.warm(Warm(1, str(tiny), 0, 2))
    logged(done(tiny, "0-1"))
    assert stages.asked > 5


def test_only_the_newest_order_counts(
    warmer: LayerWarmer, stages: Node, tiny: Path, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    stages.loads = True
    for stop in (1, 2, 3):
        warmer.warm(Warm(stop, str(tiny), 0, stop))
    warmer.warm(Warm(3, str(tiny), 0, 3))  # told again
    stages.loads = False
    logged(done(tiny, "0-2"))
    assert sum("page cache" in line for line in caplog.messages) == 1


def test_layers_that_do_not_fit_into_the_free_memory_are_not_read(
    warmer: LayerWarmer, tiny: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "free_memory", lambda: 0)
    num_bytes = Checkpoint.open(tiny).layer_bytes(LayerRange(0, 2))
    warmer.warm(Warm(1, str(tiny), 0, 2))
    logged(
        f"layers 0-1 of {tiny}: on this disk; {num_bytes / 1e6:.0f} MB are more than the free memory, 0 MB",
    )


def test_a_model_that_is_not_there_is_named_and_the_next_order_counts(
    warmer: LayerWarmer, tiny: Path, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    missing = tiny.parent / "no-such-model"
    warmer.warm(Warm(1, str(missing), 0, 2))
    eventually("it says so", lambda: any("were not warmed" in line for line in caplog.messages))
    warmer.warm(Warm(2, str(tiny), 0, 2))
    logged(done(tiny, "0-1"))
