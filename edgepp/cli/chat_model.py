"""The model that answers `edgepp chat`: that of the cluster, or a model on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.python_api import Connection, Engine
    from edgepp.wire.field_types import LinkCodec


@dataclass(frozen=True)
class ModelArguments:
    """Options of `edgepp chat` about the model, and about where it runs."""

    model: str | None = None
    """None for the model of the cluster."""
    peers: tuple[str, ...] = ()
    stages: int | None = None
    tensor: tuple[int, ...] = (1,)
    """Weights of the processes that share each layer of a stage; one process unless there are more."""
    alone: bool = False
    backend: str = "auto"
    threads: int | None = None
    exact: bool = False
    codec: str = "auto"
    """Name of the codec of all links, or one name per link, separated by commas."""
    kv_bits: int | None = None
    """Bits per key and value in the KV cache, 8 or 4; None for floats."""
    speculate: str = "lookup"
    speculate_together: bool = False

    @property
    def local_options(self) -> list[str]:
        """The given options that only a model on this machine can follow."""
        given = {
            "--stages": self.stages,
            "--tensor": len(self.tensor) > 1,
            "--threads": self.threads,
            "--backend": self.backend != "auto",
        }
        given |= {"--kv-bits": self.kv_bits, "--codec": self.codec != "auto", "--alone": self.alone}
        return [name for name, is_given in given.items() if is_given]


async def open_model(where: ModelArguments, *, quiet: bool, traces: bool = False) -> Engine | Connection:
    """A connection to the cluster of this machine, or an open engine here if no cluster answers or an option needs one.

    Args:
        where: The options about the model.
        quiet: Whether to show no progress of downloads and loads.
        traces: Whether an engine on this machine keeps the trace of the newest request.

    Raises:
        UsageError: an option is not valid, the cluster does not follow --exact, or no model is named and no cluster
            answers.
        EdgeppError: the model cannot be downloaded, loaded or split.
    """
    from edgepp.python_api import Engine
    from edgepp.ui.chat import open_here
    from edgepp.ui.screen import say

    local = where.local_options
    if not local and len(where.peers) < 2 and (cluster := await _cluster(where)) is not None:
        if where.speculate != "lookup" or where.speculate_together:
            say("--speculate has no effect here: `edgepp serve --speculate` decides", dim=True, err=True)
        return cluster
    if local and not where.alone and not where.peers and (name := _cluster_of()) is not None:
        say(f"because of {' and '.join(local)} the model runs here, not in the cluster of {name}", dim=True, err=True)
    if where.model is None:
        if local:
            raise UsageError(
                f"{local[0]} runs a model on this machine, but no model is named",
                f"name one with -m, such as -m smollm2-135m, or leave {local[0]} out to ask the cluster",
            )
        raise UsageError(
            "no model is named, and this machine reaches no cluster",
            "name a model to run here, such as -m smollm2-135m; or start a cluster with `edgepp serve`",
        )
    engine = Engine(
        where.model,
        stages=where.stages,
        tensor=where.tensor,
        peers=where.peers,
        backend=where.backend,
        threads=where.threads,
        exact=where.exact,
        codecs=_codecs(where.codec),
        speculate=where.speculate,
        speculate_together=where.speculate_together,
        kv_bits=where.kv_bits,
        traces=int(traces),
    )
    await open_here(engine, quiet=quiet)
    return engine


def _cluster_of() -> str | None:
    """The name of the coordinator of this machine's cluster; None without a cluster."""
    from edgepp.cluster.identity import load_cluster

    cluster = load_cluster()
    return None if cluster is None else cluster.coordinator.name


async def _cluster(where: ModelArguments) -> Connection | None:
    """A connection to this machine's cluster; None if no cluster answers or the cluster runs another model.

    Raises:
        UsageError: exact arithmetic is wanted, and the cluster does not compute exactly.
    """
    from edgepp.errors import PairingError, PeerLost
    from edgepp.python_api import connect
    from edgepp.ui.screen import say

    model, peers = where.model, where.peers
    cluster = connect(*peers)
    if not cluster.paired:
        return None
    try:
        await cluster.open()
    except (PeerLost, PairingError) as error:
        if not peers:
            say(f"{error}", dim=True, err=True)
        return None
    if peers and not cluster.at_peer:
        return None
    if model is not None and not cluster.runs(model):
        say(f"the cluster runs {cluster.model}, so {model} runs on this machine", dim=True, err=True)
        return None
    if where.exact and not cluster.status["exact"]:
        raise UsageError(
            "the cluster does not compute with --exact",
            "restart it with `edgepp serve --exact`, or add --alone to run the model here",
        )
    return cluster


def _codecs(text: str) -> tuple[LinkCodec, ...]:
    from edgepp.wire.field_types import LinkCodec

    names = get_args(LinkCodec)
    wanted = text.split(",")
    known: dict[str, LinkCodec] = {name: name for name in names}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"there is no codec '{unknown[0]}'", f"choose from {', '.join(names)}")
    return tuple(known[name] for name in wanted)
