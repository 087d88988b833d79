"""Answers of a pipeline whose second stage is at the far end of a shaped cable. ``shaped`` runs this module."""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import msgpack
import psutil

from bench.toolkit.cable import FAR, PORT, delayed, host, inside, shape
from bench.toolkit.figures import cell, interleave, medians, prompt, ratios
from bench.toolkit.local import arrivals, checked_model
from bench.toolkit.processors import pin_stages
from bench.toolkit.script import say
from bench.toolkit.side_program import RATES, RunRates, rates
from bench.toolkit.sides import rates_text
from bench.toolkit.slow_link import HERE
from edgepp.benchmark.machine import busy
from edgepp.benchmark.markdown_table import table as markdown_table
from edgepp.benchmark.workload import decode_step
from edgepp.child_process import python_command
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions
from edgepp.engine.stage_handshake import Endpoint
from edgepp.engine.timing import Timing
from edgepp.errors import EdgeppError
from edgepp.layer_range import LayerRange, split_evenly
from edgepp.wire.address import Address
from edgepp.wire.messages import MAX_HEADER_BYTES
from edgepp.wire.messages.data import Forward

_STAGE_PORT = 5700  # and the next one; each stage has a namespace to itself
_STAGES = 2
_STOP_S = 5.0
_RATIOS = ("prefill", "decode")
_FIGURES = ("link_mbit_per_s", "prompt_bytes", "there_bytes", "back_bytes", "wire_ms")
"""Figures of a round that are not rates."""
_UNSHAPED = "unshaped"
_FORWARD = b"\xa7forward"
_BEFORE_KIND = 4
"""Bytes of a header before its kind: the start of an array of 16 elements, and the version."""
"""Encoded kind in the header of a chunk; before it are the length of the array and the version."""
_ALL_PROTOCOLS = 3
_SO_RCVBUFFORCE = 33
_HELD_BYTES = 64 << 20


def checked(options: argparse.Namespace) -> None:
    """Fetch the model, which the namespaces cannot do, and check that the options fit it.

    Raises:
        EdgeppError: there is no such model, or the options do not fit the model.
    """
    checked_model(options, _STAGES)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all rates and the unlimited cable in turn, round after round; this process must be at the near end."""
    frontend = ModelFrontend.open(options.model, whole=False)
    links = {_UNSHAPED: None} | {f"{mbit_per_s:g} Mbit/s": mbit_per_s for mbit_per_s in options.rates}
    with stages(options, frontend.checkpoint.num_layers):
        work = {name: JoinedPipeline(options, frontend, mbit_per_s) for name, mbit_per_s in links.items()}
        results = interleave({name: one.answer for name, one in work.items()}, options.rounds, rates_text)
        pinned = work[_UNSHAPED].pinned
    rows = [row(mbit_per_s, results[name], results[_UNSHAPED]) for name, mbit_per_s in links.items()]
    return {"rows": rows, "pinned": pinned}


@contextmanager
def stages(options: argparse.Namespace, num_layers: int) -> Iterator[None]:
    """Run both stages with ``edgepp join``, each in its own namespace."""
    near, far = split_evenly(num_layers, _STAGES)
    with ExitStack() as stack:
        stack.enter_context(delayed(options.far, (_STAGE_PORT, _STAGE_PORT + 1), options.delay_ms))
        started = [
            stack.enter_context(_stage(options, near, HERE)),
            stack.enter_context(_stage(options, far, host(options.delay_ms), inside(options.far))),
        ]
        for process in started:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise EdgeppError("a stage did not start", "its message is above")
        yield


@contextmanager
def _stage(
    options: argparse.Namespace, layers: LayerRange, listen: str, within: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    how = ("--threads", str(options.threads), "--backend", options.backend, "--insecure", "--json")
    what = ("-m", options.model, "--layers", str(layers), "--listen", f"{listen}:{_STAGE_PORT}")
    command = [*within, *python_command("edgepp", "join", *what, *how)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass(frozen=True)
class InterfaceTraffic:
    """Bytes through the interface of the near end, headers and acknowledgements included."""

    there: int
    back: int

    @classmethod
    def now(cls) -> InterfaceTraffic:
        """Bytes since the cable was made."""
        counted = psutil.net_io_counters(pernic=True)[PORT]
        return cls(counted.bytes_sent, counted.bytes_recv)

    def __sub__(self, other: InterfaceTraffic) -> InterfaceTraffic:
        return InterfaceTraffic(self.there - other.there, self.back - other.back)


@dataclass
class JoinedPipeline:
    """A pipeline that is opened for each round, because an engine measures links and chooses codecs as it opens."""

    options: argparse.Namespace
    frontend: ModelFrontend
    mbit_per_s: float | None
    pinned: list[list[int]] | None = None
    """CPUs of each stage, after the first round."""

    def answer(self, turn: int) -> RunRates:
        """Run one round: one short answer with recorded packets, and one timed answer."""
        options = self.options
        shape(options.far, self.mbit_per_s)
        endpoints = tuple(Endpoint((Address(where, _STAGE_PORT),)) for where in (HERE, FAR))
        how = PipelineOptions(
            options.model, endpoints, backend=options.backend, threads=options.threads, speculate="off"
        )
        with Pipeline(how, frontend=self.frontend) as pipeline:
            self.pinned = pin_stages(pipeline.stages, options.threads)
            with tap() as packets:
                _, first = self._ask(pipeline, options.rounds + 1 + turn, 1)
                codecs = codecs_sent(packets)
            timing, whole = self._ask(pipeline, turn, options.gen)
            link_mbit_per_s = pipeline.stages[1].bytes_per_s * 8e-6
        steps, more = options.gen - 1, whole - first
        took = rates(options.prompt_tokens, options.gen, timing.submitted_s, timing.first_token_s, timing.last_token_s)
        return took | {
            "link_mbit_per_s": link_mbit_per_s,
            "codecs": codecs,
            "prompt_bytes": first.there / options.prompt_tokens,
            "there_bytes": more.there / steps,
            "back_bytes": more.back / steps,
            "wire_ms": decode_step(timing).wire_ms,
        }

    def _ask(self, pipeline: Pipeline, number: int, generate: int) -> tuple[Timing, InterfaceTraffic]:
        before = InterfaceTraffic.now()
        tokens = prompt(self.frontend.checkpoint.vocab_size, self.options.prompt_tokens, number)
        request = pipeline.engine.submit(tokens, GenerateOptions(generate, ignore_eos=True))
        arrivals(request)
        return request.timing, InterfaceTraffic.now() - before


@contextmanager
def tap() -> Iterator[Iterator[bytes]]:
    """Packets through the interface of the near end from now on; iteration ends when no packet is waiting."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as packet_socket:
        packet_socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _HELD_BYTES)
        packet_socket.bind((PORT, _ALL_PROTOCOLS))
        packet_socket.setblocking(False)
        yield _packets(packet_socket)


def _packets(packet_socket: socket.socket) -> Iterator[bytes]:
    try:
        while True:
            yield packet_socket.recv(1 << 17)
    except BlockingIOError:
        return


def codecs_sent(packets: Iterable[bytes]) -> dict[str, int]:
    """Number of prompt chunks per codec; a chunk whose header is split over two packets is not counted."""
    found: Counter[str] = Counter()
    for packet in packets:
        at = packet.find(_FORWARD)
        while at >= 0:
            unpacker = msgpack.Unpacker()
            unpacker.feed(packet[max(0, at - _BEFORE_KIND) : at + MAX_HEADER_BYTES])
            try:
                _, _, *fields = unpacker.unpack()
                found[Forward(*fields).codec] += 1
            except (msgpack.OutOfData, TypeError, ValueError):
                say("a header is split over two packets: the codec of its chunk is not counted")
            at = packet.find(_FORWARD, at + 1)
    return dict(found)


def row(mbit_per_s: float | None, results: Sequence[RunRates], unshaped: Sequence[RunRates]) -> dict[str, Any]:
    """Row of the table for one link, over all rounds; ``mbit_per_s`` is None for the unlimited cable."""
    codecs: Counter[str] = Counter()
    for result in results:
        codecs.update(result["codecs"])
    return {
        "mbit_per_s": mbit_per_s,
        **medians(results, RATES),
        "ratio": ratios(results, unshaped, _RATIOS),
        **{name: statistics.median(result[name] for result in results) for name in _FIGURES},
        "codecs": dict(codecs),
    }


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the result for people, in Markdown."""
    extra = f", {result['delay_ms']:g} ms later each way" if result["delay_ms"] else ""
    size = f"{result['prompt_tokens']} tokens of prompt, {result['gen']} generated"
    yield f"{result['model']} in two stages, the second at the far end{extra}; threads of each: {result['threads']}."
    yield f"Every token goes there and back: {size}; rounds at each rate in turn: {result['rounds']}, median"
    yield "(smallest-largest). Ratios are to the cable without a rate in the same round."
    yield taken_on(result)
    yield ""
    headings = (
        "link", "measured Mbit/s", "prefill token/s", "first token s", "decode token/s", "prefill ratio",
        "decode ratio", "ms of a step on the wire", "prompt: chunks by codec", "bytes per token",
        "decode: bytes per token there", "and back",
    )  # fmt: skip
    yield from markdown_table([f">{heading}" for heading in headings], [list(_cells(each)) for each in result["rows"]])


def _cells(each: Mapping[str, Any]) -> Iterator[str]:
    yield _UNSHAPED if each["mbit_per_s"] is None else f"{each['mbit_per_s']:g} Mbit/s"
    yield f"{each['link_mbit_per_s']:.4g}"
    for name in ("prefill_tokens_per_s", "ttft_s", "decode_tokens_per_s"):
        yield cell(each, name)
    for name in _RATIOS:
        yield cell(each["ratio"], name)
    yield f"{each['wire_ms']:.2f}"
    yield ", ".join(f"{name} {count}" for name, count in each["codecs"].items()) or "-"
    for name in ("prompt_bytes", "there_bytes", "back_bytes"):
        yield f"{each[name]:.0f}"


def taken_on(result: Mapping[str, Any]) -> str:
    """Machine, commit and load of a result, in one sentence."""
    about = result["machine"]
    load = f"load {about['load_1m']:.1f} on {about['cpus']} CPUs before it began{', busy' if busy(about) else ''}"
    return f"{about['cpu']}, commit {result['commit']}, {load}."
