"""A ``Machine`` of `edgepp plan` from timed steps of one stage. Pure; ``bench.calibration`` times the steps.

The steps are decode steps of one and of several rows, and prompts, at short and long context, through two numbers of
the model's layers. The seconds of each are a sum of a few unknowns:

    step of r rows after p positions:   step_s + layers * (pass_s[r] + r * p * position_s)
    prompt of n tokens in chunks of t:  n / t * (step_s + layers * pass_s[t]) + layers * n² / 2 * attend_s

``step_s`` is the fixed time of a step, ``pass_s[r]`` the time for r rows to pass a layer's weights, ``position_s`` the
time to read one position of a KV cache in a layer, ``attend_s`` the time for a token of a prompt to attend to one
position. Least squares of the relative errors, without negative results, give the unknowns.

The rates belong to the layers that were timed: those of narrow layers include the overhead of small operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from bench.toolkit.least_squares import nonnegative_least_squares
from edgepp.errors import PlanError
from edgepp.plan.machines import CPU_CHUNK, Efficiency, Machine, Model

_STEP, _POSITION, _ATTEND = "step_s", "position_s", "attend_s"
_MIN_PASS_S = 1e-9
"""Lower bound of a pass; noise may give less for very small layers."""
_Unknown: TypeAlias = "str | int"
"""A name, or the number of rows of a ``pass_s``."""


@dataclass(frozen=True)
class TimedSteps:
    """``steps`` of equal size through a stage, and the seconds of all of them together."""

    layers: int
    rows: int
    steps: int
    read_positions: float
    """Positions of KV caches that the decode steps read."""
    attended_pairs: float
    """Pairs of a prompt token and a position that the token attends to."""
    seconds: float

    @classmethod
    def decode(cls, layers: int, rows: int, position: int, seconds: float) -> TimedSteps:
        """One decode step of ``rows`` sequences, each with ``position`` positions in its cache."""
        return cls(layers, rows, 1, rows * position, 0.0, seconds)

    @classmethod
    def prompt(cls, layers: int, tokens: int, chunk: int, seconds: float) -> TimedSteps:
        """A prompt of ``tokens``, in chunks of ``chunk`` tokens, which divides ``tokens``."""
        return cls(layers, chunk, tokens // chunk, 0.0, tokens**2 / 2, seconds)

    @property
    def terms(self) -> dict[_Unknown, float]:
        """Coefficient of each unknown in ``seconds``."""
        return {
            _STEP: self.steps,
            self.rows: self.layers * self.steps,
            _POSITION: self.layers * self.read_positions,
            _ATTEND: self.layers * self.attended_pairs,
        }


@dataclass(frozen=True)
class Calibration:
    """The unknowns of the module's equations, in seconds."""

    step_s: float
    pass_s: Mapping[int, float]
    position_s: float
    attend_s: float

    @classmethod
    def of(cls, timed: Sequence[TimedSteps]) -> Calibration:
        """Fit the unknowns to ``timed`` steps.

        Raises:
            PlanError: the steps do not determine the unknowns.
        """
        names = list(dict.fromkeys(name for one in timed for name, count in one.terms.items() if count))
        table = np.array([[one.terms.get(name, 0.0) / one.seconds for name in names] for one in timed])
        scale = np.linalg.norm(table, axis=0)
        if np.linalg.matrix_rank(table / scale) < len(names):
            raise PlanError(
                "these steps cannot calibrate a machine", "time two numbers of layers, each at two lengths of context"
            )
        solution = nonnegative_least_squares(table / scale, np.ones(len(timed)))
        found = {name: value / float(unit) for name, value, unit in zip(names, solution, scale, strict=True)}
        passes = {name: found[name] for name in names if isinstance(name, int)}
        return cls(found[_STEP], passes, found.get(_POSITION, 0.0), found.get(_ATTEND, 0.0))

    def machine(
        self, node: str, model: Model, chunk: int, hop_s: float, lanes: int = 1, contention: float = 1.0
    ) -> Machine:
        """The machine whose steps through layers of ``model`` take these seconds.

        Raises:
            PlanError: steps of one row or of ``chunk`` rows were not timed.
        """
        if not {1, chunk} <= set(self.pass_s):
            raise PlanError(
                f"steps of {sorted(self.pass_s)} rows were timed, but steps of 1 and of {chunk} rows are needed"
            )
        size, pass_s = model.size, {rows: max(_MIN_PASS_S, seconds) for rows, seconds in sorted(self.pass_s.items())}
        stream_bytes_per_s, flops_per_s = size.layer_bytes / pass_s[1], chunk * size.layer_flops / pass_s[chunk]
        return Machine(
            node=node,
            stream_bytes_per_s=stream_bytes_per_s,
            flops_per_s=flops_per_s,
            efficiency=Efficiency(
                kv=_share(size.kv_bytes, self.position_s, stream_bytes_per_s),
                attention=_share(model.attention_flops, self.attend_s, flops_per_s),
                batches=tuple((rows, seconds / pass_s[1]) for rows, seconds in pass_s.items() if 1 < rows < chunk),
                hop_s=hop_s,
                step_s=self.step_s,
                sample_s=0.0,
            ),
            lanes=lanes,
            chunk=chunk,
            contention=contention,
        )


def coordinator_machine(node: str, model: Model, ends_s: Mapping[int, float], hop_s: float, lanes: int = 1) -> Machine:
    """The machine of a coordinator; ``ends_s`` has the seconds from a step's return to the next step, by rows.

    ``ends_s`` has at least two numbers of rows. The machine's rates include sampling, embedding and scheduling.
    """
    (fewer, fewer_s), (more, more_s) = sorted(ends_s.items())[-2:]
    row_s = max(more_s - fewer_s, more_s / 1000) / (more - fewer)
    return Machine(
        node=node,
        stream_bytes_per_s=model.head_bytes / ends_s[1],
        flops_per_s=model.head_flops / row_s,
        efficiency=Efficiency(
            batches=tuple((n, s / ends_s[1]) for n, s in sorted(ends_s.items()) if n > 1), hop_s=hop_s, sample_s=0.0
        ),
        lanes=lanes,
        chunk=max(CPU_CHUNK, more + 1),
    )


def _share(work: float, seconds: float, rate: float) -> float:
    """``work`` / ``seconds`` as a share of ``rate``; a very large share for 0 seconds."""
    return work / seconds / rate if seconds > 0 else 1e6
