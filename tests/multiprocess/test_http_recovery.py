"""Stage processes that are killed in mid-stream, as clients over HTTP see it: a pause, and the right tokens."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import anthropic
import ollama
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster import Machine, Running
from tests.multiprocess.http_cluster import MODEL, HttpCluster, serving_http
from tests.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the ollama client's sockets
TOKENS, PIECES_BEFORE = 60, 5
QUESTION: Any = [{"role": "user", "content": "Tell me a long story about a lighthouse."}]
Pieces: TypeAlias = Iterator[str]


def from_openai(cluster: HttpCluster, tokens: int = TOKENS) -> Pieces:
    with (
        openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S) as client,
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, max_tokens=tokens, stream=True
        ) as stream,
    ):
        for chunk in stream:
            yield chunk.choices[0].delta.content or ""
            if chunk.choices[0].finish_reason:
                assert chunk.choices[0].finish_reason == "length"
                return
    raise AssertionError("the stream ended without a finish reason")


def from_responses(cluster: HttpCluster, tokens: int = TOKENS) -> Pieces:
    with (
        openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S) as client,
        client.responses.stream(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=tokens) as stream,
    ):
        told = ""
        for event in stream:
            if event.type == "response.output_text.delta":
                told += event.delta
                yield event.delta
            elif event.type == "response.incomplete":
                assert event.response.output_text == told
                return
    raise AssertionError("the stream ended without its last event")


def from_anthropic(cluster: HttpCluster, tokens: int = TOKENS) -> Pieces:
    with (
        anthropic.Anthropic(base_url=cluster.url, api_key="any", max_retries=0, timeout=PATIENCE_S) as client,
        client.messages.stream(
            model=MODEL, messages=QUESTION, max_tokens=tokens, extra_body={"temperature": 0}
        ) as stream,
    ):
        yield from stream.text_stream
        final = stream.get_final_message()
        assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", tokens)


def from_ollama(cluster: HttpCluster, tokens: int = TOKENS) -> Pieces:
    options = {"temperature": 0, "num_predict": tokens}
    last = None
    for last in ollama.Client(cluster.url).chat(MODEL, messages=QUESTION, options=options, stream=True):
        yield last.message.content or ""
    assert last is not None
    assert (last.done_reason, last.eval_count) == ("length", tokens)


CLIENTS = (from_openai, from_responses, from_anthropic, from_ollama)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpCluster]:
    """Two stages of one node, which starts a killed stage process again."""
    with serving_http(tmp_path_factory.mktemp("recovery"), "--stages", "2", "--exact") as made:
        yield made


@pytest.fixture(scope="module")
def expected(cluster: HttpCluster) -> str:
    """The text of an answer that nothing disturbs."""
    text = "".join(from_openai(cluster))
    assert text
    return text


def kill(cluster: HttpCluster, stage: int) -> int:
    """Kill the process of a stage; its pid."""
    pid = cluster.status()["stages"][stage]["pid"]
    os.kill(pid, signal.SIGKILL)
    return int(pid)


def kill_last_and_wait(cluster: HttpCluster) -> None:
    """Kill the process of the last stage, and wait until the cluster answers without it."""
    killed = kill(cluster, -1)

    def replaced() -> bool:
        state = cluster.status()
        return state["state"] == "ready" and killed not in [stage["pid"] for stage in state["stages"]]

    eventually("others take its layers", replaced)


def disturbed(pieces: Pieces, disturb: Callable[[], None]) -> str:
    """The text of a stream; ``disturb`` is called in mid-stream, before which the reader stops to read."""
    text = [next(pieces) for _ in range(PIECES_BEFORE)]
    disturb()
    rest = list(pieces)
    assert len(rest) > PIECES_BEFORE
    return "".join([*text, *rest])


def samples(cluster: HttpCluster) -> Counter[str]:
    """The sum of each metric over its labels."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(cluster.get("/metrics").text):
        for sample in family.samples:
            found[sample.name] += sample.value
    return found


def wait_until_ready(cluster: HttpCluster) -> None:
    eventually("the cluster answers", lambda: cluster.get("/ready").status_code == 200)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("pieces", CLIENTS, ids=lambda one: one.__name__)
def test_a_stream_goes_on_with_its_own_tokens(
    cluster: HttpCluster, expected: str, pieces: Callable[[HttpCluster], Pieces], stage: int
) -> None:
    wait_until_ready(cluster)
    before = samples(cluster)
    assert disturbed(pieces(cluster), lambda: kill(cluster, stage)) == expected
    after = samples(cluster)
    assert after["edgepp_recoveries_total"] == before["edgepp_recoveries_total"] + 1
    assert after["edgepp_recovery_seconds_count"] == before["edgepp_recovery_seconds_count"] + 1
    assert after["edgepp_request_failure_total"] == before["edgepp_request_failure_total"]
    assert sum(cluster.status()["engine"]["recoveries"].values()) == after["edgepp_recoveries_total"]


def test_timings_name_the_recovery_whether_the_answer_is_streamed_or_not(cluster: HttpCluster, expected: str) -> None:
    wait_until_ready(cluster)
    asked = {"messages": QUESTION, "temperature": 0, "max_tokens": TOKENS}
    with ThreadPoolExecutor(1) as thread:
        whole = thread.submit(cluster.post, "/v1/chat/completions", **asked)
        streamed = from_openai(cluster)
        text = disturbed(streamed, lambda: kill(cluster, 1))
        answer = whole.result(PATIENCE_S).json()
    assert text == expected == answer["choices"][0]["message"]["content"]
    (recovery,) = answer["timings"]["recoveries"]
    assert recovery["how"] in ("prefill", "log", "copies", "transfer")
    assert recovery["pause_ms"] > 0


def test_requests_of_the_outage_wait_and_are_answered(cluster: HttpCluster, expected: str) -> None:
    wait_until_ready(cluster)
    waiting: list[Any] = []
    with ThreadPoolExecutor(2) as threads:

        def outage() -> None:
            kill(cluster, 0)
            eventually("the outage is known", lambda: cluster.get("/ready").status_code == 503)
            told = cluster.get("/ready")
            if told.status_code == 503:  # it may be over already
                assert told.headers["retry-after"]
                assert told.json()["reason"]
            waiting.extend(threads.submit(lambda: "".join(from_openai(cluster))) for _ in range(2))

        assert disturbed(from_openai(cluster), outage) == expected
        assert [one.result(PATIENCE_S) for one in waiting] == [expected] * 2
    wait_until_ready(cluster)


def test_a_stream_that_loses_its_stages_a_third_time_ends_with_an_error_in_its_own_form(cluster: HttpCluster) -> None:
    wait_until_ready(cluster)
    with (
        openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S) as client,
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        ) as stream,
    ):

        def read() -> None:
            for _ in range(8):  # a stage that dies before the request has begun again is no loss to it
                for _ in range(PIECES_BEFORE):
                    next(stream)
                kill_last_and_wait(cluster)
            list(stream)

        with pytest.raises(openai.APIError, match="has lost its stages 3 times"):
            read()
    wait_until_ready(cluster)
    assert "".join(from_ollama(cluster, 5))


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
