"""A node that is lost for good, as clients over HTTP see it: an error in the stream, and service when it is back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import anthropic
import ollama
import openai
import psutil
import pytest

from tests.cluster import Machine, Running
from tests.multiprocess.http_cluster import MODEL, HttpCluster, serving_http
from tests.multiprocess.recovery_clients import QUESTION, from_anthropic, from_ollama, from_openai, wait_until_ready
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the ollama client's sockets


@dataclass
class Split:
    """A cluster whose coordinator is pinned to half of the layers, so that it needs its second node."""

    cluster: HttpCluster
    two: Machine
    address: str
    stack: ExitStack

    def join(self, *arguments: str) -> Running:
        """Start the second node."""
        command = ("join", *arguments, "--peer", self.address)
        return self.stack.enter_context(self.two.running(*command, EDGEPP_TEST_RUN="shared"))


@pytest.fixture
def split(tmp_path: Path) -> Iterator[Split]:
    """A cluster that waits for its second node."""
    with serving_http(tmp_path, "--layers", "0-14", "--exact", ready=False) as made, ExitStack() as stack:
        yield Split(made, Machine(tmp_path, "two"), made.status()["address"], stack)


def kill_node(node: Running) -> None:
    """Kill a node and its stages, as a power cut does."""
    agent = psutil.Process(node.process.pid)
    for process in (agent, *agent.children()):
        process.kill()


def errors_of(cluster: HttpCluster, disturb: Callable[[], None]) -> list[str]:
    """The errors with which streams of three APIs end that are under way at ``disturb``."""
    streams = [pieces(cluster, 900) for pieces in (from_openai, from_anthropic, from_ollama)]
    for stream in streams:
        assert next(piece for piece in stream if piece)
    disturb()
    ended = []
    for stream in streams:
        with pytest.raises((openai.APIError, anthropic.APIError, ollama.ResponseError)) as caught:
            list(stream)
        ended.append(str(caught.value))
    return ended


def test_without_spare_capacity_streams_end_with_an_error_and_service_resumes_by_itself(split: Split) -> None:
    cluster = split.cluster
    node = split.join(cluster.machine.json("invite", "--json")["code"])
    wait_until_ready(cluster)
    text = "".join(from_openai(cluster, 8))
    for error in errors_of(cluster, lambda: kill_node(node)):
        assert "stage 1 (layers 15-29) on node two" in error
    told = cluster.get("/ready")
    assert told.status_code == 503
    assert told.headers["retry-after"]
    assert "two" in told.json()["reason"]
    asked = {"messages": QUESTION, "temperature": 0, "max_tokens": 8}
    with (
        ThreadPoolExecutor(1) as thread,
        openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="any", max_retries=20, timeout=PATIENCE_S) as patient,
    ):
        refused = cluster.post("/v1/chat/completions", **asked)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["type"] == "model_loading"
        waiting = thread.submit(patient.chat.completions.create, model=MODEL, **asked)
        split.join()
        assert waiting.result(PATIENCE_S).choices[0].message.content == text
    wait_until_ready(cluster)
