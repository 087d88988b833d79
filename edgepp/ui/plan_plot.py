"""Plots of `edgepp plan --plot`: latency against throughput over the number of requests, and the parts of a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepp.errors import UsageError
from edgepp.plan.cluster_spec import ClusterSpec
from edgepp.plan.layout import ClusterQuestion, Layout, make_layout
from edgepp.plan.machines import Workload
from edgepp.plan.predict import Decode, predict

_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)
_COLOURS = {
    "weights": "tab:blue",
    "KV": "tab:orange",
    "FLOPs": "tab:green",
    "wire": "tab:red",
    "overhead": "tab:purple",
    "ends": "tab:grey",
}


def draw(question: ClusterQuestion, cluster: ClusterSpec, file: str, lengths: Sequence[int] = ()) -> None:
    """Write a plot to ``file``: for each length of a sequence a curve and a panel of the parts of a step.

    Raises:
        UsageError: matplotlib is not installed, or the file cannot be written.
        PlanError: the cluster cannot hold the model.
    """
    pyplot = load_pyplot()
    shown = tuple(lengths) or (question.workload.position,)
    layout = make_layout(question, cluster)
    figure, axes = pyplot.subplots(1, 1 + len(shown), figsize=(6 * (1 + len(shown)), 5), layout="constrained")
    for index, length in enumerate(shown):
        decodes = decodes_at(question, layout, length)
        _curve(axes[0], decodes, length, cluster.kv_room(question.placement, layout.plan))
        _parts(axes[1 + index], decodes, length)
    axes[0].set(
        title=f"{question.model.name}, {len(layout.stages)} stages",
        xlabel="token/s of all requests together",
        ylabel="ms per token of one request",
    )
    axes[0].set_yscale("log")
    axes[0].legend(title="positions (hollow: KV caches\ndo not fit at once)")
    try:
        figure.savefig(Path(file).expanduser())
    except OSError as error:
        raise UsageError(f"the plot cannot be written to {file}: {error.strerror}", "name another file") from error
    except ValueError as error:
        raise UsageError(f"the plot cannot be written to {file}: {error}", "name a .png, .svg or .pdf file") from error
    finally:
        pyplot.close(figure)


def load_pyplot() -> Any:
    """``matplotlib.pyplot``, set to write files.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl

        mpl.use("agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise UsageError("--plot needs matplotlib, which is not installed", "pip install 'edgepp[plot]'") from error
    return pyplot


def decodes_at(question: ClusterQuestion, layout: Layout, length: int) -> tuple[Decode, ...]:
    """Decoding at ``length`` positions with 1 to 128 requests, whether or not their KV caches fit."""
    work = Workload(prompt=max(1, length - 1), answer=2, requests=_REQUESTS, chunk=max(1, length))
    return predict(question.model, layout.stages, layout.cluster.links, work, layout.cluster.coordinator.machine).decode


def _curve(axes: Any, decodes: Sequence[Decode], length: int, room: int) -> None:
    rates, times = [d.tokens_per_s for d in decodes], [1e3 * d.tpot_s for d in decodes]
    (line,) = axes.plot(rates, times, label=f"{length:,}")
    for decode, rate, time in zip(decodes, rates, times, strict=True):
        face = line.get_color() if decode.requests * length <= room else "white"
        axes.plot(rate, time, marker="o", color=line.get_color(), markerfacecolor=face)
        axes.annotate(str(decode.requests), (rate, time), textcoords="offset points", xytext=(4, 4), fontsize=8)


def _parts(axes: Any, decodes: Sequence[Decode], length: int) -> None:
    requests = [decode.requests for decode in decodes]
    for part, colour in _COLOURS.items():
        times = [1e3 * decode.parts[part] for decode in decodes]
        if any(times):
            axes.plot(requests, times, marker=".", color=colour, label=part)
    axes.plot(requests, [1e3 * d.tpot_s for d in decodes], color="black", linestyle="--", label="per token")
    axes.set(title=f"one round at {length:,} positions", xlabel="requests at once", ylabel="ms")
    axes.set_xscale("log", base=2)
    axes.set_xticks(requests, [str(count) for count in requests])
    axes.set_yscale("log")
    axes.legend()
