"""Streams of one question over each API, for tests that lose stages meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import anthropic
import ollama
import openai

from tests.multiprocess.http_cluster import MODEL, HttpCluster
from tests.waiting import PATIENCE_S, eventually

TOKENS, LONG, PIECES_BEFORE = 60, 180, 5
"""LONG answers are greedy, and last until a stage was killed although guesses make them fast; the sampled ones end
before two tokens are nearly equally likely."""
QUESTION: Any = [{"role": "user", "content": "Tell me a long story about a lighthouse."}]
Pieces: TypeAlias = Iterator[str]


def from_openai(cluster: HttpCluster, tokens: int = LONG) -> Pieces:
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


def from_responses(cluster: HttpCluster, tokens: int = LONG) -> Pieces:
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


def from_anthropic(cluster: HttpCluster, tokens: int = LONG) -> Pieces:
    with (
        anthropic.Anthropic(base_url=cluster.url, api_key="any", max_retries=0, timeout=PATIENCE_S) as client,
        client.messages.stream(
            model=MODEL, messages=QUESTION, max_tokens=tokens, extra_body={"temperature": 0}
        ) as stream,
    ):
        yield from stream.text_stream
        final = stream.get_final_message()
        assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", tokens)


def from_ollama(cluster: HttpCluster, tokens: int = LONG) -> Pieces:
    options = {"temperature": 0, "num_predict": tokens}
    last = None
    for last in ollama.Client(cluster.url).chat(MODEL, messages=QUESTION, options=options, stream=True):
        yield last.message.content or ""
    assert last is not None
    assert (last.done_reason, last.eval_count) == ("length", tokens)


def wait_until_ready(cluster: HttpCluster) -> None:
    eventually("the cluster answers", lambda: cluster.get("/ready").status_code == 200)
