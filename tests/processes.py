"""The child processes of a test, besides those of a cluster that many tests share."""

from __future__ import annotations

import psutil


def children() -> list[psutil.Process]:
    """All descendants of this process that this test has started, or an earlier one has left."""
    return [process for process in psutil.Process().children(recursive=True) if not _is_shared(process)]


def _is_shared(process: psutil.Process) -> bool:
    try:
        return process.environ().get("EDGEPP_TEST_RUN") == "shared"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return False
