"""Baselines: figures of two public sources, called the origin, as the sources print them.

A report shows them next to what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TOGETHER = "Together-LLM, 2024"
"""A pipeline of two machines over gRPC: a 4-core 2 GHz Intel i5 and an M3 Pro, bfloat16 on CPU."""
OLLAMA = "ollama, Llama 3.1 70B 4-bit, one A100 80G"
"""Stories and titles for 1, 2 and 4 users at the same time."""
SOURCES = (
    f"The origin is two public measurements from before edgepp: {TOGETHER} (a pipeline of two machines over gRPC,"
    f" bfloat16 on CPU) and {OLLAMA} (several users at once). Their hardware and models are not these, so compare"
    " shapes and ratios, not rates."
)


@dataclass(frozen=True)
class PublishedTrip:
    """Round trip of a matrix (rows, 8192) in ms; ``mb_per_s`` is one way's float32 bytes / the round trip."""

    transmission_ms: float
    codec_ms: float
    total_ms: float
    mb_per_s: float


SENDING: Mapping[int, Mapping[str, PublishedTrip]] = {
    1: {
        "none": PublishedTrip(14.05, 0.01, 14.06, 2.22),
        "lz4": PublishedTrip(18.10, 0.08, 18.18, 1.73),
        "zlib": PublishedTrip(13.95, 1.96, 15.91, 2.24),
    },
    4: {
        "none": PublishedTrip(29.89, 0.01, 29.90, 4.18),
        "lz4": PublishedTrip(30.82, 0.19, 31.01, 4.06),
        "zlib": PublishedTrip(32.74, 9.82, 42.56, 3.82),
    },
    16: {
        "none": PublishedTrip(76.95, 0.01, 76.97, 6.50),
        "lz4": PublishedTrip(78.23, 2.80, 81.02, 6.39),
        "zlib": PublishedTrip(77.19, 32.65, 109.84, 6.48),
    },
    32: {"none": PublishedTrip(137.05, 0.01, 137.06, 7.30), "lz4": PublishedTrip(136.85, 5.62, 142.47, 7.31)},
    64: {
        "none": PublishedTrip(262.03, 0.01, 262.04, 7.63),
        "lz4": PublishedTrip(249.84, 10.37, 260.20, 8.01),
        "zlib": PublishedTrip(256.25, 83.67, 339.92, 7.80),
    },
}
"""TOGETHER's table by rows and codec, for matrices of normal noise in float16."""
SENDING_MBIT_PER_S = 64.0
"""Rate of the link under ``SENDING``: 64 rows of float16, there and back, in 262 ms."""

RATES_MBIT_PER_S = (13.0, SENDING_MBIT_PER_S, 105.0, 131.0, 1000.0, 2500.0)
"""Rates of links. TOGETHER prints 13 and 131 Mbps where its own figures give 105 Mbit/s and 1.05 Gbit/s."""


@dataclass(frozen=True)
class PublishedRate:
    """Token rate of one request."""

    machines: str
    first_token: bool
    """Whether the time to the first token counts."""
    llama_1b: float
    llama_3b: float | None = None


GENERATION: tuple[PublishedRate, ...] = (
    PublishedRate("one machine", False, 10.96),
    PublishedRate("one machine", True, 5.73),
    PublishedRate("PP 2, TP 1", False, 8.04, 3.01),
    PublishedRate("PP 2, TP 2", False, 7.38, 2.51),
    PublishedRate("PP 2, TP 1", True, 5.49, 2.42),
    PublishedRate("PP 2, TP 2", True, 5.66, 2.46),
)
"""TOGETHER's Llama-3.2-1B-Instruct and Llama-3.2-3B-Instruct."""
PIPELINE_KEPT = 8.04 / 10.96
"""Decode rate of TOGETHER's pipeline of two machines / rate of one machine."""


@dataclass(frozen=True)
class PublishedAnswer:
    """Means over requests at the same time; the rate counts the first token."""

    tokens: float
    time_s: float
    tokens_per_s: float


STORIES: Mapping[tuple[int, int], PublishedAnswer] = {
    (1, 25): PublishedAnswer(28, 1.22, 22.9),
    (1, 50): PublishedAnswer(63, 2.50, 25.2),
    (1, 100): PublishedAnswer(119, 4.68, 25.4),
    (1, 400): PublishedAnswer(456, 18.04, 25.3),
    (1, 800): PublishedAnswer(821, 32.94, 24.9),
    (2, 25): PublishedAnswer(31, 1.48, 21.0),
    (2, 50): PublishedAnswer(60.5, 2.84, 21.3),
    (2, 100): PublishedAnswer(125, 5.60, 22.3),
    (2, 400): PublishedAnswer(460.5, 21.34, 21.6),
    (2, 800): PublishedAnswer(877, 42.00, 20.9),
    (4, 25): PublishedAnswer(30.5, 2.01, 15.2),
    (4, 50): PublishedAnswer(66.5, 4.21, 15.8),
    (4, 100): PublishedAnswer(122.75, 7.56, 16.2),
    (4, 400): PublishedAnswer(478.25, 31.10, 15.4),
    (4, 800): PublishedAnswer(1066.75, 76.19, 14.0),
}
"""OLLAMA's answers to "tell a story in N words", by requests at the same time and N."""
TITLES: Mapping[int, PublishedAnswer] = {
    1: PublishedAnswer(16, 2.28, 7.0),
    2: PublishedAnswer(19, 2.64, 7.2),
    4: PublishedAnswer(16.75, 4.59, 3.7),
}
"""OLLAMA's answers to "give a title for below text in 10 words" with 484 words of text, by number of requests."""
FOUR_TOGETHER = 2.4
"""Rate of four requests together / rate of one request, in OLLAMA's measurement."""
