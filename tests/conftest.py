"""What every test is held to: it leaves no thread, no process and no open port behind, also when it fails."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.builders.checkpoints import Checkpoints
from tests.builders.properties import examples
from tests.shelf_watch import is_watched, pytest_runtest_protocol, stays_on_its_shelf  # noqa: F401 - a hook and a fixture
from tests.waiting import PATIENCE_S

RUN = f"run-{uuid.uuid4().hex}"
os.environ["EDGEPP_TEST_RUN"] = RUN  # inherited by every process that a test starts, whoever its parent becomes
_HOME = tempfile.TemporaryDirectory(prefix="edgepp-home-")
os.environ["EDGEPP_HOME"] = _HOME.name  # no test may read or change this machine's own identity and cluster
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")  # on Linux it would call a C++ compiler for each kernel

hypothesis.settings.register_profile(
    "repeat", deadline=None, derandomize=True, database=None, max_examples=examples(100)
)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
# The same few examples in every run, so that a change and not chance makes a test fail; `make fuzz` looks for others.
hypothesis.settings.load_profile(os.environ.get("EDGEPP_EXAMPLES", "repeat"))

# A shell's background jobs, and what runs under `nohup`, ignore these, as do their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


_FOREIGN = set(psutil.pids())
"""Ids of processes that are older than this run and still run: reading all their environments takes long."""


def _started_processes() -> list[psutil.Process]:
    """Processes of this test run besides this one, orphans among them."""
    running = psutil.pids()
    _FOREIGN.intersection_update(running)
    found = []
    for pid in running:
        try:
            if pid not in _FOREIGN and (process := psutil.Process(pid)).environ().get("EDGEPP_TEST_RUN") == RUN:
                found += [process] if process.status() != psutil.STATUS_ZOMBIE else []
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


_GIVEN_UP = ("hub-headers", "opening")
"""Names of the threads that edgepp leaves to a library that cannot be interrupted."""


def _edgepp_threads() -> list[str]:
    """Threads that run code of edgepp, by where the code is: names change."""
    running = [t for t in threading.enumerate() if t.name not in _GIVEN_UP]
    origins = [(t, getattr(t, "_target", None) or type(t)) for t in running]
    return [t.name for t, origin in origins if getattr(origin, "__module__", "").startswith("edgepp.")]


@pytest.fixture(scope="module", autouse=True)
def home_for_a_module() -> Iterator[None]:
    """Leave no cluster in the home that all modules of a worker share."""
    yield
    for path in Path(_HOME.name).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module", autouse=True)
def frozen_modules(request: pytest.FixtureRequest) -> Iterator[None]:
    """Exempt what was imported from collections of garbage, which are asked for below and cost 0.4 s otherwise."""
    gc.freeze()
    yield
    gc.unfreeze()
    if _asks_by_sdks(request.path):
        _collect_quietly()


@pytest.fixture(autouse=True)
def sockets_of_sdks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect what the SDKs of some clients leave to the collector, before a later test is told of it."""
    yield
    if _asks_by_sdks(request.path):
        _collect_quietly()
        gc.freeze()  # what lives on is not looked at again by each test of the module


def _asks_by_sdks(module: Path) -> bool:
    return "unit" not in module.parts and ("http" in module.name or "http_api" in module.parts)


def _collect_quietly() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Random checkpoints, each made once per run; a test that changes a folder makes one of its own."""
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def tiny(checkpoints: Checkpoints) -> Path:
    """The smallest checkpoint, to be read only."""
    return checkpoints()


class _Shelves(LoadScopeScheduling):
    """Which tests share a worker; ``--dist loadgroup`` of xdist 3.8 does not read its groups under pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        match nodeid.split("/")[1]:
            case "multiprocess" if "/test_http_" in nodeid:
                return "http"  # they share one cluster
            case "netns":
                return "netns"  # bridges and addresses are the machine's
            case "loopback" | "faults":
                return nodeid.partition("::")[0]  # fixtures per module are costly
            case "unit" if all("unit" in Path(argument).parts for argument in self.config.args):
                return nodeid.partition("::")[0]  # fewer messages; beside slow tests, each fills what they leave idle
        return nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Largest groups first, then test by test."""
    return _Shelves(config, log)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaks; end what it leaked, so that the next test starts clean."""
    yield
    # A test of some shelves starts no process (the shelf refuses that), and a look at all processes takes 10 ms.
    look = list if is_watched(request.node) else _started_processes
    deadline = time.monotonic() + PATIENCE_S
    while (look() or _edgepp_threads()) and time.monotonic() < deadline:
        time.sleep(0.02)
    threads, processes = _edgepp_threads(), look()
    described = [f"{process.pid}: {' '.join(process.cmdline())[:200]}" for process in processes]
    for process in processes:
        process.kill()
    assert not threads, f"threads left running: {threads}"
    assert not described, f"processes left running: {described}"
