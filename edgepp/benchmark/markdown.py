"""A report in Markdown: tables, each next to the origin's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgepp.benchmark import baselines, origin_table
from edgepp.benchmark.machine import busy
from edgepp.benchmark.markdown_table import number, spread, table
from edgepp.benchmark.report import ALONE, NAMES, BenchmarkReport, CodecResult, ConcurrentResult, SingleResult, Spread


def markdown(report: BenchmarkReport, pictures: Sequence[str] = ()) -> str:
    """The whole report, the short form first; ``pictures`` are names of files beside it."""
    parts = [
        _head(report),
        _in_short(report, pictures),
        _about(report),
        _target(report),
        _one_request(report),
        _at_once(report, text=False),
        _at_once(report, text=True),
        _codecs(report),
        _choices(report),
        _left_out(report),
        _reading(report),
    ]
    return "\n\n".join("\n".join(lines) for part in parts if (lines := list(part))) + "\n"


def _head(report: BenchmarkReport) -> Iterator[str]:
    target = report.target
    stages = len(target.stages)
    yield f"# edgepp bench: {target.model} on {stages} stage{'s' if stages != 1 else ''}"
    yield ""
    if report.partial:
        yield f"**This report is partial: {report.partial}.**"
        yield ""
    where = "the live cluster" if target.kind == "cluster" else "a pipeline on one machine, over loopback"
    commit = f", commit {report.commit}" if report.commit else ""
    yield f"{report.began}, edgepp {report.version}{commit}, {where}; measured in {report.took_s:.0f} s."


def _in_short(report: BenchmarkReport, pictures: Sequence[str]) -> Iterator[str]:
    """The rates of one request in a sentence, and the pictures."""
    if (single := report.single) is not None:
        rates = f"{spread(single.decode_tokens_per_s)} token/s, prompts {spread(single.prefill_tokens_per_s)} token/s"
        gain = f"; {spread(report.ratio['decode_tokens_per_s'])} times one process's" if report.ratio else ""
        yield f"**One request: {rates}{gain}.**"
    for picture in pictures:
        yield from ("", f"![{picture.partition('.')[0]}]({picture})")


def _about(report: BenchmarkReport) -> Iterator[str]:
    machine = report.machine
    yield baselines.SOURCES
    yield ""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    yield (
        f"Measured from: {machine['cpu']}, {machine['cores']} cores, {machine['cpus']} CPUs,"
        f" {machine['memory_gib']:.0f} GiB, {machine['system']}, Python {machine['python']}; {libraries}."
    )
    if busy(machine):
        yield ""
        yield (
            f"**The machine was busy before it began (load {machine['load_1m']:.1f} on {machine['cpus']} CPUs): these"
            " are not figures to quote.**"
        )


def _target(report: BenchmarkReport) -> Iterator[str]:
    yield "## What was measured"
    yield ""
    if report.target.nodes:
        headings = (
            "node", "roles", "state", "backend", "device", ">threads", ">memory GB", ">GB/s", ">GFLOP/s", ">RTT ms",
            "edgepp",
        )  # fmt: skip
        yield from table(headings, [_node(node) for node in report.target.nodes])
        yield ""
    rows = [
        (
            str(index), stage.layers, stage.node, f"{stage.backend} on {stage.device}",
            "" if stage.hop_s is None else f"{stage.hop_s * 1e3:.2f}",
            "" if not stage.bytes_per_s else number(stage.bytes_per_s / 125e3),
        )
        for index, stage in enumerate(report.target.stages)
    ]  # fmt: skip
    yield from table((">stage", "layers", "node", "runs on", ">link into it: ms one way", ">Mbit/s"), rows)


def _node(node: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(node["name"]), ", ".join(node["roles"]) or "spare", str(node["state"]), str(node["backend"]),
        str(node["device"]), str(node["threads"]), f"{node['memory_bytes'] / 1e9:.1f}",
        f"{node['stream_bytes_per_s'] / 1e9:.1f}",
        f"{node['flops_per_s'] / 1e9:.0f}", f"{node['rtt_s'] * 1e3:.1f}", str(node["version"]),
    )  # fmt: skip


def _one_request(report: BenchmarkReport) -> Iterator[str]:
    single, alone = report.single, report.alone
    if single is None:
        return
    yield "## One request"
    yield ""
    rounds = f"median of {single.ttft_s.n} rounds (spread)"
    yield f"A prompt of {single.prompt_tokens} tokens, {single.tokens} generated; {rounds}."
    yield ""
    ours = f"{len(report.target.stages)} stages" if len(report.target.stages) != 1 else "1 stage"
    sides = [(ours, single)] + ([(ALONE, alone)] if alone is not None else [])
    headings = ["", *(f">{name}" for name, _ in sides), *([">ratio"] if alone is not None else [])]
    rows = []
    for name, words in NAMES.items():
        values: list[Spread] = [getattr(side, name) for _, side in sides]
        ratio = [spread(report.ratio[name])] if alone is not None else []
        rows.append([words, *(spread(value) for value in values), *ratio])
    yield from table(headings, rows)
    yield ""
    yield from _step_parts({"": single, **report.layouts})
    yield from _guesses(single)
    yield from _origin(report)


def _step_parts(sides: Mapping[str, SingleResult]) -> Iterator[str]:
    for name, one in sides.items():
        if one.stages_ms:
            stages = " + ".join(f"{ms:.2f}" for ms in one.stages_ms)
            yield (
                f"A decode step{name and ' of '}{name}, in ms: stages {stages}, wire {one.wire_ms:.2f}, coordinator"
                f" {one.coordinator_ms:.2f}."
            )
            yield ""


def _origin(report: BenchmarkReport) -> Iterator[str]:
    yield (
        f"The origin's ({baselines.TOGETHER}: bfloat16 on CPU, two machines over gRPC, token/s). Model, machines and"
        " link differ, so only the ratio of its pipeline to its one machine"
        f" ({baselines.PIPELINE_KEPT:.2f}) can be held against a ratio here:"
    )
    yield ""
    headings = ("", "first token", ">Llama-3.2-1B-Instruct", ">Llama-3.2-3B-Instruct", f">here, {report.target.model}")
    rows = [
        (name, "with" if first_token else "without", one, three, "-" if here is None else spread(here))
        for name, first_token, one, three, here in origin_table.rows(report)
    ]
    yield from table(headings, rows)
    if report.layouts:
        yield ""
        yield (
            "PP is the number of stages, TP the number of processes that compute each layer of a stage together; here"
            " all of them are on this machine."
        )


def _guesses(single: SingleResult) -> Iterator[str]:
    if single.guessed:
        yield (
            f"{single.guessed} tokens were guessed ahead over all rounds, {single.right} of them right: the decode"
            " rate is one with guessing, and depends on the text."
        )
        yield ""


def _at_once(report: BenchmarkReport, *, text: bool) -> Iterator[str]:
    rows = [row for row in report.requests if row.text is text]
    if not rows:
        return
    yield "## A title for a text of 484 words" if text else "## A story in N words, several requests at once"
    yield ""
    headings = [
        ">requests", *([] if text else [">words"]), ">tokens", ">time s", ">token/s each", ">together",
        ">TTFT p50 / p99 s", ">ITL p50 / p99 ms", ">origin: tokens", ">time s", ">token/s each",
    ]  # fmt: skip
    yield from table(headings, [_row(row) for row in rows])
    yield ""
    if not text and (gain := _gain(rows)):
        yield gain
        yield ""
    yield (
        f"Origin: {baselines.OLLAMA}. Here it is {report.target.model} on the hardware above, and every answer has"
        " exactly as many tokens as the words ask for at 1.15 per word (18 for a title), so times and rates show the"
        " shape and not which is faster. Rates count the first token. The medians' spread is over rounds."
    )
    if report.target.kind == "cluster":
        reused = max(row.reused / row.prompt_tokens for row in rows)
        yield (
            "Each prompt begins with a number of its own, since through a cluster one machine owns all questions and"
            " what it asked before need not be computed again. The stages still held at most"
            f" {100 * reused:.0f} % of a prompt: the chat template's beginning."
        )
    else:
        yield "Each request has an owner of its own, and its prompt begins with a number: nothing asked before helps."


def _row(row: ConcurrentResult) -> list[str]:
    known = baselines.TITLES.get(row.requests) if row.text else baselines.STORIES.get((row.requests, row.words))
    theirs = [f"{known.tokens:g}", f"{known.time_s:g}", f"{known.tokens_per_s:g}"] if known else ["", "", ""]
    return [
        str(row.requests), *([] if row.text else [str(row.words)]), f"{row.tokens:g}", spread(row.time_s),
        spread(row.tokens_per_s), spread(row.aggregate_tokens_per_s),
        f"{number(row.ttft_p50_s)} / {number(row.ttft_p99_s)}",
        f"{row.itl_p50_s * 1e3:.1f} / {row.itl_p99_s * 1e3:.1f}", *theirs,
    ]  # fmt: skip


def _gain(rows: Sequence[ConcurrentResult]) -> str:
    """Four requests together against one, as the origin puts it."""
    rates = {(row.requests, row.words): row.aggregate_tokens_per_s.median for row in rows}
    gains = [rates[4, words] / rates[1, words] for requests, words in rates if requests == 4 and (1, words) in rates]
    if not gains:
        return ""
    theirs = baselines.FOUR_TOGETHER
    span = f"{min(gains):.1f}" if len(gains) == 1 else f"{min(gains):.1f} to {max(gains):.1f}"
    return f"Four requests at once get together {span} times one request's rate; the origin's {theirs}."


def _codecs(report: BenchmarkReport) -> Iterator[str]:
    if not report.codecs:
        return
    first = report.codecs[0]
    yield "## Hidden states on a link: what codecs cost here"
    yield ""
    yield (
        f"Matrices of (rows, {first.width}) in {first.dtype}, encoded and decoded on this machine; *pays below* is the"
        " rate of a link under which the bytes saved take longer to send than that takes. *One way at 64 Mbit/s* is"
        f" computed: codec and bytes over the rate, no latency; the origin's ({baselines.TOGETHER}, float16 noise) is"
        " its measured way there and back over a link of about that rate, zlib where edgepp has zstd. `bench.shaped`"
        " measures links."
    )
    yield ""
    headings = (
        ">rows", "data", "codec", ">codec ms", ">ratio", ">pays below Mbit/s", ">one way at 64 Mbit/s, ms",
        ">origin: codec ms", ">there and back, ms",
    )  # fmt: skip
    yield from table(headings, [_coded(one) for one in report.codecs])


def _coded(one: CodecResult) -> list[str]:
    theirs = baselines.SENDING.get(one.rows, {}).get({"zstd": "zlib"}.get(one.codec, one.codec))
    pays = "" if one.codec == "none" else number(one.pays_below_mbit_per_s) if one.pays_below_mbit_per_s else "never"
    return [
        str(one.rows), one.data, one.codec, f"{one.codec_ms.median:.3f}", f"{one.ratio:.2f}", pays,
        number(one.total_ms(baselines.SENDING_MBIT_PER_S)),
        *((f"{theirs.codec_ms:g}", f"{theirs.total_ms:g}") if theirs and one.data == "noise" else ("", "")),
    ]  # fmt: skip


def _choices(report: BenchmarkReport) -> Iterator[str]:
    if not report.chosen:
        return
    rows = sorted({one.rows for one in report.chosen})
    yield "## What `auto` sends, by the rate of the link"
    yield ""
    lines = []
    for data in dict.fromkeys(one.data for one in report.chosen):
        for mbit_per_s in sorted({one.mbit_per_s for one in report.chosen}):
            codecs = {one.rows: one.codec for one in report.chosen if (one.data, one.mbit_per_s) == (data, mbit_per_s)}
            lines.append([data, number(mbit_per_s), *(codecs.get(count, "") for count in rows)])
    yield from table(["data", ">Mbit/s", *(f"{count} row{'s' if count > 1 else ''}" for count in rows)], lines)
    yield ""
    yield (
        "13 and 131 Mbit/s are the origin's wanted bandwidths as it prints them; by its own figures they are 105"
        " Mbit/s for 20 token/s and 1.05 Gbit/s for a first token within 3 s. A frame shorter than 16 KiB is never"
        " compressed."
    )


def _left_out(report: BenchmarkReport) -> Iterator[str]:
    if report.left_out:
        yield "## Left out"
        yield ""
        yield from (f"- {what}" for what in report.left_out)


def _reading(report: BenchmarkReport) -> Iterator[str]:
    chosen = report.settings
    warm = "each row once" if chosen["warm"] else "one request"
    yield "## How to read this"
    yield ""
    yield (
        f"Rounds go through all rows in turn; {chosen['rounds']} of them count, after {warm} to warm up. A figure is"
        " the median, in brackets the smallest and the largest; what differs by less means nothing. Decoding is"
        " greedy and does not stop at an end of sequence. bench/METHODOLOGY.md defines every name."
    )
    if report.alone is not None:
        yield (
            f"*{ALONE.capitalize()}* is one stage process with all layers on the machine named first, asked in turn"
            " with the other side, with the same prompts."
        )
