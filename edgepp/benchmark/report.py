"""What a run of `edgepp bench` found, and its JSON form. Pure data; times in seconds unless a name says otherwise."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
ALONE = "one process"
NAMES: Mapping[str, str] = {
    "decode_tokens_per_s": "decode token/s, without the first token",
    "e2e_tokens_per_s": "token/s, with the first token",
    "prefill_tokens_per_s": "prefill token/s",
    "ttft_s": "time to the first token, s",
}


@dataclass(frozen=True)
class Spread:
    """A median of ``n`` rounds, and their smallest and largest value."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def of_ratios(cls, over: Sequence[float], under: Sequence[float]) -> Spread:
        """The spread of ratios, ``over`` divided by ``under``; both have one value per round."""
        return cls.of([one / other for one, other in zip(over, under, strict=True)])


@dataclass(frozen=True)
class SingleResult:
    """One request alone; the rates are those of bench/METHODOLOGY.md."""

    prompt_tokens: int
    tokens: int
    reused: int
    """Tokens of the prompts, over all rounds, that the stages still held."""
    guessed: int
    right: int
    """Tokens guessed ahead, over all rounds, and those of them that were right."""
    decode_tokens_per_s: Spread
    e2e_tokens_per_s: Spread
    prefill_tokens_per_s: Spread
    ttft_s: Spread
    stages_ms: tuple[float, ...] = ()
    """Of a decode step in the round of middle decode rate: each stage's own computing."""
    wire_ms: float = 0.0
    coordinator_ms: float = 0.0


@dataclass(frozen=True)
class ConcurrentResult:
    """Requests asked at once: means over requests, as the origin's tables have them, with the spread of the rounds."""

    requests: int
    words: int
    text: bool
    """Whether a title of a text was asked for and no story."""
    prompt_tokens: float
    reused: float
    """Tokens of a prompt that the stages still held, as a mean."""
    tokens: float
    time_s: Spread
    tokens_per_s: Spread
    """Of each request, first token included."""
    aggregate_tokens_per_s: Spread
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float

    @property
    def name(self) -> str:
        """Which row of which table it is."""
        return f"{self.requests} at once, {'a title' if self.text else f'{self.words} words'}"


@dataclass(frozen=True)
class Coded:
    """Hidden states (rows, width) encoded and decoded on this machine."""

    rows: int
    width: int
    dtype: str
    data: str
    """``noise``, or ``real``: the model's own after half of its layers."""
    codec: str
    codec_ms: Spread
    """Milliseconds of encoding and decoding."""
    nbytes: int
    sent_bytes: int

    @property
    def ratio(self) -> float:
        """Bytes without the codec over bytes with it."""
        return self.nbytes / self.sent_bytes

    @property
    def pays_below_mbit_per_s(self) -> float:
        """The rate of a link below which the bytes saved take longer to send than the codec takes; 0: never."""
        return max(0.0, (self.nbytes - self.sent_bytes) * 8e-3 / self.codec_ms.median)

    def total_ms(self, mbit_per_s: float, latency_s: float = 0.0) -> float:
        """Milliseconds of one way over a link, computed from its rate and latency."""
        return self.codec_ms.median + latency_s * 1e3 + self.sent_bytes * 8e-3 / mbit_per_s


@dataclass(frozen=True)
class Chosen:
    """What ``auto`` sends (rows, width) with over a link of so many Mbit/s."""

    mbit_per_s: float
    data: str
    rows: int
    codec: str


@dataclass(frozen=True)
class StageFacts:
    """A stage of the pipeline and the link into it."""

    layers: str
    node: str
    backend: str
    device: str
    hop_s: float | None
    """One way of a hidden state into this stage; the last stage's includes the way back."""
    bytes_per_s: float | None
    """Measured rate of the link from the stage before; None where it was not measured."""


@dataclass(frozen=True)
class Target:
    """What was measured."""

    kind: str
    """``cluster``, or ``local`` for a pipeline on this machine."""
    model: str
    stages: tuple[StageFacts, ...]
    nodes: tuple[Mapping[str, Any], ...] = ()
    """A cluster's machines: name, backend, device, threads, memory, measured speed, version."""


@dataclass
class BenchmarkReport:
    """Everything that a run found; filled in while it measures."""

    began: str
    settings: Mapping[str, Any]
    target: Target
    version: str
    commit: str | None
    machine: Mapping[str, Any]
    took_s: float = 0.0
    partial: str = ""
    """Why the report is not whole; empty for a whole one."""
    single: SingleResult | None = None
    alone: SingleResult | None = None
    """The same model in one process of this machine, asked in turn with the other."""
    ratio: Mapping[str, Spread] = field(default_factory=dict)
    """For each of NAMES: ``single`` divided by ``alone`` within a round."""
    requests: list[ConcurrentResult] = field(default_factory=list)
    codecs: list[Coded] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON; ``figures`` are all that were measured, one by one, for ``compare``."""
        codecs = [
            {**asdict(one), "ratio": one.ratio, "pays_below_mbit_per_s": one.pays_below_mbit_per_s}
            for one in self.codecs
        ]
        figures = [{**asdict(spread), **about} for about, spread in self._figures()]
        whole = {"schema": SCHEMA, "bench": "edgepp", **asdict(self), "codecs": codecs, "figures": figures}
        form: dict[str, Any] = rounded(whole)
        return form

    def _figures(self) -> Iterator[tuple[dict[str, str], Spread]]:
        for side, single in (("", self.single), (f"{ALONE}: ", self.alone)):
            for name, words in NAMES.items() if single is not None else ():
                yield _about(f"{side}{words}", "less" if name == "ttft_s" else "more"), getattr(single, name)
        for row in self.requests:
            yield _about(f"{row.name}: token/s each", "more"), row.tokens_per_s
            yield _about(f"{row.name}: token/s together", "more"), row.aggregate_tokens_per_s
            yield _about(f"{row.name}: time, s", "less"), row.time_s
        for one in self.codecs:
            if one.codec != "none":
                yield _about(f"{one.codec} of {one.rows} rows, {one.data}: codec, ms", "less"), one.codec_ms


def _about(name: str, better: str) -> dict[str, str]:
    return {"name": name, "better": better}


def rounded(value: Any) -> Any:
    """``value`` with four digits of every float in it, which is more than a measurement has."""
    match value:
        case float():
            return float(f"{value:.4g}")
        case Mapping():
            return {str(key): rounded(inner) for key, inner in value.items()}
        case list() | tuple():
            return [rounded(inner) for inner in value]
    return value
