"""Every fuzz target over its seeds and a few changes of each: `make fuzz` begins with targets that work."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.targets import TARGETS

_MAX_SEEDS = 60


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_its_seeds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    target, draw = TARGETS[name], Random(1)  # noqa: S311 - a mix, not a secret
    seeds = list(target.seeds())
    assert len(seeds) > 3
    for seed in draw.sample(seeds, min(_MAX_SEEDS, len(seeds))):
        target.check(seed)
        if target.mutate is not None:
            target.check(target.mutate(seed, draw))
