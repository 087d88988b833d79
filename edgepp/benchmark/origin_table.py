"""The origin's table of one request over pipelines and tensor parallelism, with what was measured here beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgepp.benchmark import baselines
from edgepp.benchmark.report import BenchmarkReport, SingleResult, Spread
from edgepp.errors import UsageError
from edgepp.model.tensor_shares import MAX_RANKS

ONE_MACHINE = "one machine"


def parse_layouts(text: str) -> tuple[tuple[int, int], ...]:
    """Layouts like ``2x1,2x2``: numbers of stages, and of processes that share each layer of a stage.

    Raises:
        UsageError: the text is no such list.
    """
    found = [re.fullmatch(r"([1-9][0-9]?)x([1-9][0-9]?)", part.strip()) for part in text.split(",")]
    layouts = [(int(match[1]), int(match[2])) for match in found if match is not None]
    if len(layouts) < len(found) or any(ranks > MAX_RANKS for _, ranks in layouts):
        raise UsageError(
            f"'{text:.40}' is not a list of layouts",
            f"write stages x processes per stage, at most {MAX_RANKS} of these, like 2x1,2x2",
        )
    return tuple(dict.fromkeys(layouts))


def layout_name(stages: int, ranks: int) -> str:
    """Name of a layout as in the origin's table: PP is the number of stages, TP that of the processes of each."""
    return ONE_MACHINE if stages == ranks == 1 else f"PP {stages}, TP {ranks}"


def measured_here(report: BenchmarkReport) -> dict[str, SingleResult]:
    """Results of the report by the names of their layouts; of a cluster only those that were measured on this machine.

    How a cluster's stages share layers is in its plan.
    """
    found = dict(report.layouts)
    if report.alone is not None:
        found[ONE_MACHINE] = report.alone
    if report.target.kind == "local" and report.single is not None:
        found.setdefault(layout_name(len(report.target.stages), 1), report.single)
    return found


def rows(report: BenchmarkReport) -> Iterator[tuple[str, bool, str, str, Spread | None]]:
    """Layout, whether the time to the first token counts, the origin's rates for 1B and 3B, and the rate here.

    The origin's rows come first, then those that it does not have; where a rate is missing there is "-" or None.
    """
    here = measured_here(report)
    for one in baselines.GENERATION:
        three = "-" if one.llama_3b is None else str(one.llama_3b)
        yield one.machines, one.first_token, str(one.llama_1b), three, _rate(here.get(one.machines), one.first_token)
    known = {one.machines for one in baselines.GENERATION}
    for first_token in (False, True):
        for name, result in here.items():
            if name not in known:
                yield name, first_token, "-", "-", _rate(result, first_token)


def _rate(result: SingleResult | None, first_token: bool) -> Spread | None:
    if result is None:
        return None
    return result.e2e_tokens_per_s if first_token else result.decode_tokens_per_s
