"""Stages of the open pipeline that have not answered for a while: told as events, and to people who wait.

A stage that is suspect has lost nothing yet: it may sleep for a second, or its link may flap.
"""

from __future__ import annotations

from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.engine.stage_watch import SUSPECT_S
from edgepp.events import OnEvent, StageSuspected


class Suspicions:
    """Follows which stages are suspect; belongs to the coordinator's thread."""

    def __init__(self, pipeline_manager: PipelineManager, on_event: OnEvent) -> None:
        self._pipeline_manager = pipeline_manager
        self._on_event = on_event
        self._suspects: dict[str, float] = {}
        """The seconds for which each suspect has been silent, by its name."""

    @property
    def reason(self) -> str:
        """What answers may be waiting for; empty while all stages answer."""
        return ", ".join(f"{name} has not answered for {silent_s:.0f} s" for name, silent_s in self._suspects.items())

    def tick(self) -> None:
        """Look at the stages, and report changes. A suspect that is lost is reported with the pipeline."""
        pipeline = self._pipeline_manager.pipeline
        silent: dict[str, float] = {}
        if pipeline is not None:
            stats = pipeline.engine.stage_stats
            silent = {str(stage): one.silent_s for stage, one in zip(pipeline.stages, stats, strict=False)}
        suspects = {name: silent_s for name, silent_s in silent.items() if silent_s > SUSPECT_S}
        for name in suspects.keys() - self._suspects.keys():
            self._on_event(StageSuspected(name, answers=False))
        for name in self._suspects.keys() & silent.keys() - suspects.keys():
            self._on_event(StageSuspected(name, answers=True))
        self._suspects = suspects
