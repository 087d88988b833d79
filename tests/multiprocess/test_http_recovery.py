"""Stage processes that are killed in mid-stream, as clients over HTTP see it: a pause, and the right tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.multiprocess.http_cluster import MODEL, HttpCluster, serving_http
from tests.multiprocess.recovery_clients import (
    LONG,
    PIECES_BEFORE,
    QUESTION,
    TOKENS,
    Pieces,
    from_anthropic,
    from_ollama,
    from_openai,
    from_responses,
    wait_until_ready,
)
from tests.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the ollama client's sockets


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


def process_of(cluster: HttpCluster, stage: int) -> psutil.Process:
    """The process of a stage, to be found before an answer begins: the answer would go on meanwhile."""
    return psutil.Process(cluster.status()["stages"][stage]["pid"])


def kill_last_and_wait(cluster: HttpCluster) -> None:
    """Kill the process of the last stage, and wait until the cluster answers without it."""
    process = process_of(cluster, -1)
    killed = process.pid
    process.kill()

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


@pytest.mark.parametrize(
    ("pieces", "stage"), [(from_openai, 0), (from_responses, 1), (from_anthropic, 0), (from_ollama, 1)]
)
def test_a_stream_goes_on_with_its_own_tokens(
    cluster: HttpCluster, expected: str, pieces: Callable[[HttpCluster], Pieces], stage: int
) -> None:
    wait_until_ready(cluster)
    before = samples(cluster)
    assert disturbed(pieces(cluster), process_of(cluster, stage).kill) == expected
    after = samples(cluster)
    assert after["edgepp_recoveries_total"] == before["edgepp_recoveries_total"] + 1
    assert after["edgepp_recovery_seconds_count"] == before["edgepp_recovery_seconds_count"] + 1
    assert after["edgepp_request_failure_total"] == before["edgepp_request_failure_total"]
    assert sum(cluster.status()["engine"]["recoveries"].values()) == after["edgepp_recoveries_total"]


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "story": {"type": "string"}},
    "required": ["name", "story"],
    "additionalProperties": False,
}
KINDS: dict[str, Any] = {
    "log-probabilities": {"temperature": 0, "logprobs": True, "top_logprobs": 2},
    "schema": {
        "temperature": 0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
    },
    "seeded": {"temperature": 1, "seed": 7, "frequency_penalty": 0.5, "stop": ["never said"]},
    "two choices": {"temperature": 1, "seed": 11, "n": 2},
}


class Answer:
    """A streamed chat answer, as far as it has come."""

    def __init__(self, **options: Any) -> None:
        self.options = {"model": MODEL, "messages": QUESTION, "max_tokens": TOKENS, "stream": True} | options
        self.texts: dict[int, str] = {}
        self.logprobs: list[tuple[str, float]] = []
        self.num_pieces = 0

    def read(self, cluster: HttpCluster) -> Answer:
        """Read to the end."""
        with (
            openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S) as client,
            client.chat.completions.create(**self.options) as stream,
        ):
            for chunk in stream:
                for choice in chunk.choices:
                    self.texts[choice.index] = self.texts.get(choice.index, "") + (choice.delta.content or "")
                    told = choice.logprobs.content if choice.logprobs else None
                    self.logprobs += [(token.token, token.logprob) for token in told or ()]
                self.num_pieces += 1
        return self


@pytest.fixture(scope="module")
def undisturbed(cluster: HttpCluster) -> dict[str, Answer]:
    """An answer of each kind that nothing disturbs, each alone."""
    wait_until_ready(cluster)
    return {kind: Answer(**options).read(cluster) for kind, options in KINDS.items()}


@pytest.mark.parametrize("stage", [0, 1])
def test_streams_of_all_kinds_go_on_together(cluster: HttpCluster, undisturbed: dict[str, Answer], stage: int) -> None:
    wait_until_ready(cluster)
    before = samples(cluster)
    answers = {kind: Answer(**options) for kind, options in KINDS.items()}
    process = process_of(cluster, stage)
    with ThreadPoolExecutor(len(answers)) as threads:
        reading = [threads.submit(answer.read, cluster) for answer in answers.values()]
        eventually("all have begun", lambda: all(one.num_pieces >= PIECES_BEFORE for one in answers.values()))
        process.kill()
        for one in reading:
            one.result(PATIENCE_S)
    assert samples(cluster)["edgepp_recoveries_total"] > before["edgepp_recoveries_total"]
    for kind, answer in answers.items():
        assert answer.texts == undisturbed[kind].texts, kind
    tokens, values = zip(*answers["log-probabilities"].logprobs, strict=True)
    expected_tokens, expected_values = zip(*undisturbed["log-probabilities"].logprobs, strict=True)
    assert tokens == expected_tokens
    assert values == pytest.approx(expected_values, abs=1e-3)
    assert len(answers["two choices"].texts) == 2


def test_timings_name_the_recovery_whether_the_answer_is_streamed_or_not(cluster: HttpCluster, expected: str) -> None:
    wait_until_ready(cluster)
    asked = {"messages": QUESTION, "temperature": 0, "max_tokens": LONG}
    process = process_of(cluster, 1)

    def lose() -> None:
        process.suspend()  # holds both answers
        eventually("both are under way", lambda: cluster.status()["engine"]["live"] == 2)
        with suppress(psutil.NoSuchProcess):  # after 5 s its node ends it as hung
            process.kill()

    with ThreadPoolExecutor(1) as thread:
        whole = thread.submit(cluster.post, "/v1/chat/completions", **asked)
        text = disturbed(from_openai(cluster), lose)
        answer = whole.result(PATIENCE_S).json()
    assert text == expected == answer["choices"][0]["message"]["content"]
    (recovery,) = answer["timings"]["recoveries"]
    assert recovery["how"] in ("prefill", "log", "copies", "transfer")
    assert recovery["pause_ms"] > 0


def test_requests_of_the_outage_wait_and_are_answered(cluster: HttpCluster, expected: str) -> None:
    wait_until_ready(cluster)
    waiting: list[Any] = []
    process, before = process_of(cluster, 0), samples(cluster)["edgepp_recoveries_total"]

    def is_over() -> bool:
        """Look at the outage as a client does, until it is over; a busy machine may see nothing of it."""
        told = cluster.get("/ready")
        if told.status_code == 503:
            assert told.headers["retry-after"]
            assert told.json()["reason"]
        return samples(cluster)["edgepp_recoveries_total"] > before

    with ThreadPoolExecutor(2) as threads:

        def outage() -> None:
            process.kill()
            waiting.extend(threads.submit(lambda: "".join(from_openai(cluster))) for _ in range(2))
            eventually("the outage is over", is_over)

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

        with pytest.raises(openai.APIError, match="under way each of the 3 times that a stage was lost"):
            read()
    wait_until_ready(cluster)
    assert "requests went on over other stages" in cluster.machine.run("status").stdout
    assert "".join(from_ollama(cluster, 5))
