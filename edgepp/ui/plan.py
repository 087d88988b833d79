"""Output of `edgepp plan`: a forecast as tables and sentences, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click
from rich.text import Text

from edgepp.errors import PlanError
from edgepp.placement.costs import memory_needed
from edgepp.placement.values import Policy
from edgepp.plan.advice import Need
from edgepp.plan.cluster_spec import ClusterSpec
from edgepp.plan.forecast import Forecast, forecast
from edgepp.plan.hardware import catalogue
from edgepp.plan.json_report import forecast_dict, requests_fit, sequences_needed, unfit_dict
from edgepp.plan.layout import ClusterQuestion
from edgepp.plan.predict import Decode
from edgepp.plan.quantities import format_link_rate
from edgepp.plan.ways import Way
from edgepp.ui.plan_figures import duration, flops_rate, milliseconds, rate, times
from edgepp.ui.plan_plot import draw, load_pyplot
from edgepp.ui.progress import megabytes
from edgepp.ui.screen import Rows, Screen, say

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_MAX_CHANGES = 3
"""Most changes of the cluster that are suggested to make one answer faster."""
_PARTS = {
    "weights": "reading weights",
    "KV": "reading the KV cache",
    "FLOPs": "arithmetic",
    "wire": "network",
    "sums": "sums over the network",
    "overhead": "software",
    "ends": "embedding and head",
}
"""Names of the parts of a step, for people."""
_WAYS = {"tensor": "sharing each layer", "pipeline": "a pipeline", "one": "one machine"}
_SIMILAR = 0.05
"""Relative difference below which two speeds count as about the same."""


def show_plan(
    question: ClusterQuestion,
    cluster: ClusterSpec,
    plot: str | None = None,
    lengths: Sequence[int] = (),
    *,
    as_json: bool,
) -> None:
    """Print the forecast of a model on a cluster; draw it to the file ``plot`` for sequences of ``lengths`` positions.

    Raises:
        PlanError: the cluster cannot hold the model; the hint says what would help.
        SystemExit: the same with ``as_json``, after it was printed as JSON.
        UsageError: the plot cannot be drawn or written.
    """
    if plot is not None:
        load_pyplot()  # fails before the tables are printed if matplotlib is missing
    try:
        found = forecast(question, cluster)
    except PlanError as error:
        if not as_json:
            raise
        click.echo(json.dumps(unfit_dict(question, error)))
        raise SystemExit(1) from error
    if as_json:
        click.echo(json.dumps(forecast_dict(found)))
    else:
        Screen().show(*picture(found))
    if plot is not None:
        draw(question, cluster, plot, lengths)


def list_hardware(*, as_json: bool) -> None:
    """Print the hardware that --node and --slices know by name."""
    if as_json:
        click.echo(json.dumps({"hardware": [asdict(one) for one in catalogue().values()]}))
        return
    table = Rows("NAME", "HARDWARE", "MEMORY (GB)", ">BANDWIDTH", ">FLOP/S", ">FLOP/$")
    sources: dict[str, list[str]] = {}
    for one in catalogue().values():
        price = f"{one.flops_per_dollar:.2g}" if one.flops_per_dollar else ""
        flops = f"{'~' if 'estimate' in one.note else ''}{one.flops_per_s / 1e12:.3g} T"
        table.add_row(
            one.name,
            one.title,
            ", ".join(map(str, one.memory_gb)),
            f"{one.memory_bytes_per_s / 1e9:g} GB/s",
            flops,
            price,
        )
        sources.setdefault(one.source, []).append(one.name)
    Screen().show(table)
    click.echo("\n~ marks an estimate; --json has the note about it. Sources:")
    for source, names in sources.items():
        say(f"  {', '.join(names)}: {source}")


def picture(found: Forecast) -> Iterator[Any]:
    """The forecast as tables and sentences."""
    yield _head(found)
    yield ""
    yield _stages(found)
    yield ""
    yield _requests(found)
    yield ""
    yield _answer(found)
    yield _best_node_text(found)
    if sentence := best_way_text(found.ways, found.question.policy):
        yield sentence
    for need in found.needs:
        yield _need(need, found)
    yield _changes_text(found)
    yield Text(_basis(found), style="dim")


def _head(found: Forecast) -> Text:
    question, size = found.question, found.question.model.size
    kv, sequences = size.kv_token_bytes, question.max_sequences
    return Text.assemble(
        (question.model.name, "bold"),
        (" fits", "green"),
        f": {megabytes(size.weight_bytes)} of weights; KV caches take"
        f" {kv / 1e3:,.0f} kB per position, {megabytes(kv * question.context * sequences)} for {sequences}"
        f" sequence{'s' if sequences > 1 else ''} of {question.context:,}; there is room for {found.kv_room:,}"
        " positions",
    )


def _stages(found: Forecast) -> Rows:
    layout, prediction = found.layout, found.layout.prediction
    table = Rows(
        "STAGE", "LAYERS", "NODE", ">TAKES", ">OF", ">WEIGHTS", ">KV CACHE", ">ARITHMETIC", ">NETWORK", ">SUMS",
        ">SOFTWARE", ">PER TOKEN", "LIMITED BY", "FOR A PROMPT BY",
    )  # fmt: skip
    memory = layout.cluster.stage_memory(found.question.placement, layout.plan)
    stages = zip(prediction.one.stages, prediction.prefill.stages, memory, strict=True)
    for index, (time, prefill, (needed, offered)) in enumerate(stages):
        seconds = (
            time.weights_s, time.kv_s, time.arithmetic_s, time.wire_s, time.sums_s, time.overhead_s,
            time.busy_s + time.wire_s,
        )  # fmt: skip
        table.add_row(
            str(index), str(time.layers), str(layout.stages[index]), megabytes(needed), megabytes(offered),
            *map(milliseconds, seconds), _PARTS[time.limit], _PARTS[prefill.limit],
        )  # fmt: skip
    one, coordinator = prediction.one, layout.cluster.coordinator.name
    back = milliseconds(one.ends_s + one.return_s)
    table.add_row("", "embedding, head", coordinator, "", "", "", "", "", milliseconds(one.return_s), "", "", back)
    return table


def _requests(found: Forecast) -> Rows:
    table = Rows(">REQUESTS", ">TOKEN/S EACH", ">TOGETHER", ">PER TOKEN", "LIMITED BY", "")
    for decode in found.layout.prediction.decode:
        needed, room = sequences_needed(decode, found.question), ""
        if not requests_fit(decode, found):
            room = "their KV caches do not fit at the same time: they take turns"
        elif needed > found.question.max_sequences:
            room = f"with --max-sequences {needed}, for which there is memory"
        rates = (rate(1 / decode.tpot_s), rate(decode.tokens_per_s), milliseconds(decode.tpot_s))
        table.add_row(str(decode.requests), *rates, _limit(decode), Text(room, style="yellow"))
    return table


def _limit(decode: Decode) -> str:
    """Limit of the rate of ``decode``, for people: the longest part of a round trip, a link, or a node and its part."""
    if decode.limit == "round trip":
        return _PARTS[max(decode.parts, key=lambda part: decode.parts[part])]
    if decode.limit.startswith("link "):
        return "the link's bandwidth"
    stages = [stage for stage in decode.stages if stage.node == decode.limit]
    busiest = max(stages, key=lambda stage: stage.busy_s, default=None)
    return f"{decode.limit}: {_PARTS[busiest.limit if busiest else 'ends']}"


def _answer(found: Forecast) -> str:
    prefill, one, workload = found.layout.prediction.prefill, found.layout.prediction.one, found.question.workload
    return (
        f"A prompt of {prefill.tokens:,} tokens: {rate(prefill.tokens_per_s)} token/s, first token after"
        f" {duration(prefill.ttft_s)}; then {rate(1 / one.tpot_s)} token/s. An answer of {workload.answer:,} tokens"
        f" takes {duration(found.layout.prediction.answer_s(workload))}."
    )


def _best_node_text(found: Forecast) -> str:
    layout, single = found.layout, found.best_node
    if single is None:
        largest = max(layout.cluster.nodes, key=lambda node: node.memory_bytes)
        needed = memory_needed(found.question.placement, found.question.model.size.layers, True)
        parts = f" for {largest.machine.lanes} stages" if largest.machine.lanes > 1 else ""
        return (
            f"No node holds the model alone: it takes {megabytes(needed)}, and {largest.name}, the largest, has"
            f" {megabytes(largest.memory_bytes)}{parts}."
        )
    if layout.machines == 1:
        return f"All layers run on {single.name}: no other node takes part."
    count = _WORDS[layout.machines] if layout.machines < len(_WORDS) else str(layout.machines)
    throughput = f"have {times(single.throughput_ratio)} its token/s with {single.requests} requests at once"
    speed = "about as fast" if abs(single.speedup - 1) < _SIMILAR else f"{times(single.speedup)} as fast"
    text = f"{count.capitalize()} nodes give one answer {speed} as {single.name} alone, and {throughput}"
    if max(single.speedup, single.throughput_ratio) < 1 + _SIMILAR:
        return f"{text}: use them for size, not speed."
    return f"{text}: use them for many requests, not for one." if single.speedup < 1 - _SIMILAR else f"{text}."


def best_way_text(ways: Sequence[Way], policy: Policy) -> str:
    """Sentence on the best of shared layers, a pipeline and one machine; empty with nothing to compare.

    ``policy`` is that of the plan that is shown: a pipeline of another one is told apart.
    """
    if len(ways) < 2:
        return ""
    best, *others = ways
    gains = [f"{_as_fast(way.answer_s / best.answer_s)} {_way(way, policy)}" for way in others]
    text = f"Best for one answer is {_way(best, policy)}: {', and '.join(gains)}"
    shared = next((way for way in ways if way.name == "tensor"), None)
    if shared is None:
        return f"{text}."
    return f"{text}. Sums take {milliseconds(shared.sums_s)} of a token where layers are shared."


def _as_fast(ratio: float) -> str:
    return "about as fast as" if ratio < 1 + _SIMILAR else f"{times(ratio)} as fast as"


def _way(way: Way, policy: Policy) -> str:
    """A way to run the model, its machines, and the policy that makes it where the shown plan has another one."""
    other = f" with --policy {way.policy}" if way.name == "pipeline" and way.policy != policy else ""
    return f"{_WAYS[way.name]}{other} ({' and '.join(way.nodes)})"


def _need(need: Need, found: Forecast) -> str:
    wish = f"{duration(need.wanted_s)} {'per token' if need.what == 'tpot' else 'to the first token'}"
    if need.without_links_s > need.wanted_s:
        ratio = need.without_links_s / need.wanted_s
        return (
            f"For {wish} no link is fast enough: the machines alone take {duration(need.without_links_s)}, so they"
            f" would have to be {times(ratio)} as fast."
        )
    if found.layout.machines == 1:
        return f"For {wish} no link is needed: {duration(need.predicted_s)} is predicted."
    kept = "reached" if need.predicted_s <= need.wanted_s else "not reached"
    bandwidth = (
        f"{format_link_rate(need.bytes_per_s)} at this latency"
        if need.bytes_per_s
        else "no bandwidth is enough at this latency"
    )
    latency = (
        f"{duration(need.latency_s)} of latency at this bandwidth"
        if need.latency_s
        else "no latency is low enough at this bandwidth"
    )
    return f"For {wish} ({kept}: {duration(need.predicted_s)} is predicted) every link needs {bandwidth}, or {latency}."


def _changes_text(found: Forecast) -> str:
    if not found.changes:
        return "No single change would make an answer more than 5 % faster."
    best, *others = (f"{change.what} ({times(change.gain)} as fast)" for change in found.changes[:_MAX_CHANGES])
    return f"What would help one answer most: {best}" + (f"; then {'; '.join(others)}." if others else ".")


def _basis(found: Forecast) -> str:
    """Source of the figures: the rates of each node, and the shares that are reached."""
    groups: dict[tuple[float, float], list[str]] = {}
    for node in found.layout.cluster.nodes:
        machine, reached = node.machine, node.machine.efficiency
        rates = f"{machine.stream_bytes_per_s / 1e9:.4g} GB/s, {flops_rate(machine.flops_per_s)}"
        groups.setdefault((reached.stream, reached.flops), []).append(f"{node.name} ({node.source}: {rates})")
    texts = (f"{_reached(*shares)} of {', '.join(of)}" for shares, of in groups.items())
    return f'Computed with {"; ".join(texts)}. "As fast" compares the time of a whole answer, prompt and tokens.'


def _reached(stream: float, flops: float) -> str:
    """Reached shares of bandwidth and of FLOP/s, for people."""
    if stream == flops == 1:
        return "all of the bandwidth and FLOP/s"
    return f"{stream:g} of the bandwidth and {flops:g} of the FLOP/s"
