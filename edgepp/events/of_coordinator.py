"""Events of a running coordinator: the members of its cluster, its plans, pipelines and models."""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.layer_range import LayerRange


@dataclass(frozen=True)
class NodePaired:
    """A machine was paired: the cluster admits its key from now on."""

    name: str
    host: str
    way: str
    """How the machine was paired: ``invitation 7``, or the name of a token."""

    def __str__(self) -> str:
        return f"{self.name} at {self.host} is paired, by {self.way}"


@dataclass(frozen=True)
class PairingFailed:
    """An attempt to pair failed: a wrong code, or an expired invitation."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class NodeJoined:
    """A paired node joined the members of the cluster."""

    name: str
    host: str
    memory_bytes: int
    backend: str

    def __str__(self) -> str:
        return f"{self.name} joined from {self.host} with {self.memory_bytes / 1e9:.1f} GB ({self.backend})"


@dataclass(frozen=True)
class NodeMoved:
    """A node is reached at another address."""

    name: str
    before: str
    host: str

    def __str__(self) -> str:
        return f"{self.name} moved from {self.before} to {self.host}"


@dataclass(frozen=True)
class NodeChanged:
    """The state of a node changed: stopped, suspect, gone, back, or left for good."""

    name: str
    change: str
    """The predicate of the sentence, such as ``is suspect``."""

    def __str__(self) -> str:
        return f"{self.name} {self.change}"


@dataclass(frozen=True)
class StageSuspected:
    """A stage has not answered for some seconds, which is no loss yet; or it answers again."""

    stage: str
    answers: bool

    def __str__(self) -> str:
        return f"{self.stage} {'answers again' if self.answers else 'does not answer at the moment'}"


@dataclass(frozen=True)
class NodeRevoked:
    """A node or token was revoked."""

    name: str

    def __str__(self) -> str:
        return f"revoked {self.name}"


@dataclass(frozen=True)
class NodeRefused:
    """A node was refused."""

    name: str
    host: str
    reason: str
    by_token: bool = False

    def __str__(self) -> str:
        return f"refused {self.name} at {self.host}{', which has a token' * self.by_token}: {self.reason}"


@dataclass(frozen=True)
class PlanMade:
    """The planner made a new plan."""

    plan_version: int
    stages: tuple[tuple[LayerRange, str], ...]
    """The layers of each stage, and the name of the node that runs the stage, in order."""
    reason: str = ""

    def __str__(self) -> str:
        stages = ", ".join(f"layers {layers} on {name}" for layers, name in self.stages)
        return f"plan {self.plan_version}: {stages}{'; ' * bool(self.reason)}{self.reason}"


@dataclass(frozen=True)
class PlanKept:
    """A better plan is wanted, and the present nodes allow none: the plan stays, or there is still none."""

    plan_version: int | None
    """None without a plan."""
    reason: str

    def __str__(self) -> str:
        return self.reason if self.plan_version is None else f"plan {self.plan_version} stays: {self.reason}"


@dataclass(frozen=True)
class PlanMissing:
    """The plan ended, and the remaining nodes allow no other."""

    reason: str

    def __str__(self) -> str:
        return f"no plan: {self.reason}"


@dataclass(frozen=True)
class LayersNotLoaded:
    """A node could not load its layers, or its stage process ended."""

    name: str
    reason: str
    hint: str
    restarting: bool = False
    """Whether the node starts the stage again by itself."""

    def __str__(self) -> str:
        if self.restarting:
            return f"{self.name} starts its stage again: {self.reason}"
        return f"{self.name} cannot run its layers: {self.reason}{'; ' * bool(self.hint)}{self.hint}"


@dataclass(frozen=True)
class DraftLoaded:
    """A node has loaded the small model with which it guesses tokens."""

    name: str
    model: str

    def __str__(self) -> str:
        return f"{self.name} guesses tokens with {self.model}"


@dataclass(frozen=True)
class DraftFailed:
    """A node cannot guess tokens, or its drafting process ended; answers go on without its guesses."""

    name: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.name} does not guess tokens: {self.reason}{'; ' * bool(self.hint)}{self.hint}"


@dataclass(frozen=True)
class PipelineOpened:
    """A pipeline over the stages of a plan is open: requests can be answered."""

    plan_version: int
    took_s: float

    def __str__(self) -> str:
        return f"ready to answer: the pipeline of plan {self.plan_version} opened in {self.took_s:.1f} s"


@dataclass(frozen=True)
class PipelineNotOpened:
    """The pipeline of a plan did not open, although all stages are loaded; the coordinator tries again."""

    plan_version: int
    reason: str

    def __str__(self) -> str:
        return f"the pipeline of plan {self.plan_version} does not open, trying again: {self.reason}"


@dataclass(frozen=True)
class PipelineLost:
    """The open pipeline was lost; the coordinator opens another."""

    reason: str

    def __str__(self) -> str:
        return f"the pipeline is lost, opening another: {self.reason}"


@dataclass(frozen=True)
class ModelChanged:
    """The cluster runs another model now."""

    model: str

    def __str__(self) -> str:
        return f"the cluster runs {self.model} now"


@dataclass(frozen=True)
class ModelNotChanged:
    """The cluster could not change its model, and goes on with the former one."""

    model: str
    reason: str

    def __str__(self) -> str:
        return f"the model stays as it is: {self.reason}"


@dataclass(frozen=True)
class StepFailed:
    """One step of the coordinator failed unexpectedly; the coordinator continues."""

    step: str
    error: str

    def __str__(self) -> str:
        return f"{self.step} failed, and the coordinator continues: {self.error}"
