"""A hub over loopback HTTP, and the checkpoints in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepp.model.hub import client as hub_client
from edgepp.model.random_checkpoint import make_checkpoint
from tests.hub import FakeHub, serving
from tests.loopback.model_hub.fetched import NAME, SHAPE


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("single") / "model", SHAPE)


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("indexed") / "model", SHAPE, files=4)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, no token, no waiting between attempts, and the hub may be asked."""
    import huggingface_hub

    monkeypatch.setenv("EDGEPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "shared"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_client, "_RETRY_BASE_S", 0.01)
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub(single: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(FakeHub({NAME: single})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
