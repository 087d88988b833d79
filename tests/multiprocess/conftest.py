"""What tests with real processes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.multiprocess.http_cluster import HttpCluster, serving_http


@pytest.fixture(scope="session")
def http_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpCluster]:
    """A served two-stage cluster with HTTP. A test leaves it as it was: ready, and without requests."""
    with serving_http(tmp_path_factory.mktemp("http-cluster"), "--stages", "2", "--exact") as cluster:
        yield cluster
