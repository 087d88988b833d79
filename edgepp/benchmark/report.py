"""Results of `edgepp bench`, and their JSON form. Pure data."""

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
    """Prompt tokens of all rounds that the prefix cache of the stages held."""
    guessed: int
    """Tokens guessed ahead, over all rounds."""
    right: int
    """Correct ones of the ``guessed`` tokens, over all rounds."""
    decode_tokens_per_s: Spread
    e2e_tokens_per_s: Spread
    prefill_tokens_per_s: Spread
    ttft_s: Spread
    stages_ms: tuple[float, ...] = ()
    """Computing time of each stage in a decode step, from the round with the median decode rate."""
    wire_ms: float = 0.0
    coordinator_ms: float = 0.0


@dataclass(frozen=True)
class ConcurrentResult:
    """Requests at the same time: means over requests, as in the origin's tables, with the spread of the rounds."""

    requests: int
    words: int
    text: bool
    """Whether the question was for the title of a text, not for a story."""
    prompt_tokens: float
    reused: float
    """Mean prompt tokens that the prefix cache of the stages held."""
    tokens: float
    time_s: Spread
    tokens_per_s: Spread
    """Rate of one request, first token included."""
    aggregate_tokens_per_s: Spread
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float

    @property
    def name(self) -> str:
        """Name of the row."""
        return f"{self.requests} at once, {'a title' if self.text else f'{self.words} words'}"


def pays_below_mbit_per_s(plain_bytes: int, sent_bytes: int, codec_ms: float) -> float:
    """Rate of a link below which the saved bytes take longer to send than the codec takes; 0: never."""
    return max(0.0, (plain_bytes - sent_bytes) * 8e-3 / codec_ms)


@dataclass(frozen=True)
class CodecResult:
    """Hidden states (rows, width) encoded and decoded on this machine."""

    rows: int
    width: int
    dtype: str
    data: str
    """``noise``, or ``real`` for hidden states after half of the model's layers."""
    codec: str
    codec_ms: Spread
    """Milliseconds of encoding and decoding."""
    nbytes: int
    sent_bytes: int

    @property
    def ratio(self) -> float:
        """Bytes without the codec / bytes with it."""
        return self.nbytes / self.sent_bytes

    @property
    def pays_below_mbit_per_s(self) -> float:
        """Rate of a link below which the codec saves time; 0: never."""
        return pays_below_mbit_per_s(self.nbytes, self.sent_bytes, self.codec_ms.median)

    def total_ms(self, mbit_per_s: float, latency_s: float = 0.0) -> float:
        """Milliseconds of one way over a link, computed from the rate and latency of the link."""
        return self.codec_ms.median + latency_s * 1e3 + self.sent_bytes * 8e-3 / mbit_per_s


@dataclass(frozen=True)
class AutoChoice:
    """Codec that ``auto`` chooses for ``rows`` rows over a link of ``mbit_per_s``."""

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
    """Seconds of a hidden state into this stage; for the last stage, the way back is included."""
    bytes_per_s: float | None
    """Measured rate of the link from the stage before; None where it was not measured."""


@dataclass(frozen=True)
class MeasuredTarget:
    """Target of a measurement."""

    kind: str
    """``cluster``, or ``local`` for a pipeline on this machine."""
    model: str
    stages: tuple[StageFacts, ...]
    nodes: tuple[Mapping[str, Any], ...] = ()
    """A cluster's machines: name, backend, device, threads, memory, measured speed, version."""


@dataclass
class BenchmarkReport:
    """All results of a run; filled in during the measurement."""

    began: str
    settings: Mapping[str, Any]
    target: MeasuredTarget
    version: str
    commit: str | None
    machine: Mapping[str, Any]
    took_s: float = 0.0
    partial: str = ""
    """Reason why the report is incomplete; empty if it is complete."""
    single: SingleResult | None = None
    alone: SingleResult | None = None
    """The same model in one process of this machine, measured in turn with ``single``."""
    layouts: dict[str, SingleResult] = field(default_factory=dict)
    """The same model over other pipelines of this machine, by name as in the origin's table, measured in turn too."""
    ratio: Mapping[str, Spread] = field(default_factory=dict)
    """For each of NAMES: ``single`` divided by ``alone`` within a round."""
    requests: list[ConcurrentResult] = field(default_factory=list)
    codecs: list[CodecResult] = field(default_factory=list)
    chosen: list[AutoChoice] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON; ``figures`` is a flat list of all measured figures, for ``compare``."""
        codecs = [
            {**asdict(one), "ratio": one.ratio, "pays_below_mbit_per_s": one.pays_below_mbit_per_s}
            for one in self.codecs
        ]
        figures = [{**asdict(spread), **about} for about, spread in self._figures()]
        whole = {"schema": SCHEMA, "bench": "edgepp", **asdict(self), "codecs": codecs, "figures": figures}
        rounded_report: dict[str, Any] = rounded(whole)
        return rounded_report

    def _figures(self) -> Iterator[tuple[dict[str, str], Spread]]:
        sides = {"": self.single, f"{ALONE}: ": self.alone}
        for side, single in (sides | {f"{name}: ": one for name, one in self.layouts.items()}).items():
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
    """``value`` with every float rounded to four significant digits."""
    match value:
        case float():
            return float(f"{value:.4g}")
        case Mapping():
            return {str(key): rounded(inner) for key, inner in value.items()}
        case list() | tuple():
            return [rounded(inner) for inner in value]
    return value
