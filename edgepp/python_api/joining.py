"""This machine as a node of a cluster, or as one stage outside of any cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepp.cluster.pairing.join import PairingOptions
from edgepp.errors import UsageError
from edgepp.layer_range import LayerRange
from edgepp.node.composition_root import LoneStageOptions, LoneStageService, MemberOptions, MemberService
from edgepp.plan.quantities import parse_bytes
from edgepp.python_api.background_service import Background
from edgepp.python_api.cancellable_thread import run_in_thread
from edgepp.wire.address import Address


@dataclass(frozen=True)
class JoinOptions:
    """The options of `edgepp join` and ``edgepp.join``; ``join`` and ``stage`` describe each."""

    code: str | None = None
    token: str | None = None
    peers: tuple[Address, ...] = ()
    layers: LayerRange | None = None
    memory: int | None = None
    backend: str = "auto"
    threads: int | None = None
    exact: bool = False
    listen: Address | None = None
    kv_bits: int | None = None
    replace: bool = False
    model: str | None = None
    insecure: bool = False
    draft: str | None = None
    tensor: int = 1
    allow_sleep: bool = False

    def member(self) -> MemberOptions:
        """The options of a member of a cluster.

        Raises:
            UsageError: an option is not valid in a cluster.
        """
        if self.kv_bits is not None:
            raise UsageError(
                "--kv-bits needs -m: in a cluster the coordinator decides", "give --kv-bits to `edgepp serve` instead"
            )
        if self.insecure:
            raise UsageError("--insecure needs -m and --layers: a cluster is always encrypted", "leave --insecure out")
        return MemberOptions(
            pairing=PairingOptions(self.code, self.token, self.peers, self.replace),
            pinned=self.layers,
            memory_bytes=self.memory,
            backend=self.backend,
            threads=self.threads,
            exact=self.exact,
            listen=self.listen or Address("*", 0),
            draft=self.draft or "",
            tensor=self.tensor,
            allow_sleep=self.allow_sleep,
        )

    def lone_stage(self) -> LoneStageOptions:
        """The options of one stage outside of any cluster.

        Raises:
            UsageError: an option is missing, or valid in a cluster only.
        """
        cluster_options = (
            self.code, self.token, self.peers, self.memory, self.replace, self.draft, self.tensor > 1
        )  # fmt: skip
        if self.model is None or self.layers is None or any(cluster_options):
            raise UsageError(
                "-m runs one stage outside of a cluster: it needs --layers, and no CODE, --peer, --memory, --draft,"
                " --tensor or --replace",
                "add --layers, or leave -m out to join a cluster: the coordinator names the model",
            )
        return LoneStageOptions(
            model=self.model,
            layers=self.layers,
            listen=self.listen or Address("127.0.0.1", 0),
            backend=self.backend,
            threads=self.threads,
            exact=self.exact,
            kv_bits=self.kv_bits,
            insecure=self.insecure,
        )


class JoinedNode(Background[MemberService]):
    """This machine as a node of a cluster. Use it in an ``async with`` statement.

    Leaving the statement stops the node; the machine still belongs to the cluster.
    """

    def __init__(self, options: MemberOptions) -> None:
        super().__init__(lambda on_event, progress, given_up: MemberService(options, on_event, progress, given_up))

    @property
    def name(self) -> str:
        """The name of this machine, as other nodes see it."""
        return self._service.identity.name

    @property
    def node(self) -> str:
        """The node id of this machine."""
        return self._service.identity.node

    @property
    def cluster(self) -> str:
        """The id of the cluster."""
        return self._service.cluster.id

    @property
    def coordinator(self) -> str:
        """The name of the coordinator."""
        return self._service.cluster.coordinator.name

    @property
    def address(self) -> str | None:
        """``HOST:PORT`` at which the coordinator was reached; None until then."""
        address = self._service.address
        return None if address is None else str(address)

    @property
    def has_layers(self) -> bool:
        """Whether this machine runs layers of the model, or loads some."""
        return self.is_open and self._service.has_layers

    async def drain(self) -> None:
        """Have the coordinator move this machine's layers to other nodes, and wait for the move, at most 20 s.

        Answers under way then go on without this machine. Close the node afterwards: it gets no layers any more.
        """
        await run_in_thread(self._service.drain, lambda _: None)


class LoneStage(Background[LoneStageService]):
    """One stage outside of any cluster; ``Engine(model, peers=...)`` uses it. Use it in an ``async with`` statement."""

    def __init__(self, options: LoneStageOptions) -> None:
        super().__init__(lambda on_event, progress, given_up: LoneStageService(options, on_event, progress, given_up))

    @property
    def service(self) -> LoneStageService:
        """The running stage: what it loaded, and where it listens."""
        return self._service

    @property
    def address(self) -> str:
        """``HOST:PORT`` at which the stage listens."""
        return str(self._service.address)


def join(
    code: str | None = None,
    *,
    token: str | None = None,
    peers: Sequence[str] = (),
    layers: str | None = None,
    memory: int | str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    listen: str | None = None,
    replace: bool = False,
    draft: str | None = None,
    tensor: int = 1,
    allow_sleep: bool = False,
) -> JoinedNode:
    """Make this machine a node of a cluster, like `edgepp join`.

    Args:
        code: Code of `edgepp invite` or ``ServedCluster.invite``; not needed once this machine is paired.
        token: Token of `edgepp token` or ``ServedCluster.token``; default: ``EDGEPP_TOKEN`` or a token file.
        peers: ``HOST:PORT`` of possible coordinators; default: found on the network.
        layers: First and last layer to run, like ``0-14``; default: planned by the coordinator.
        memory: Memory limit of the model on this machine, in bytes or like ``8GB``; default: all free memory.
        backend: ``auto``, ``mlx`` or ``onnx``.
        threads: Compute threads; default: all cores.
        listen: ``HOST:PORT`` at which the stage listens; default: every address and a free port.
        replace: Leave the present cluster for that of the code or token.
        draft: Run no layers, and guess tokens for the cluster with this small model of the same family.
        tensor: Share each layer with other machines that ask for the same layers and the same number, ``tensor``
            machines in all.
        allow_sleep: Let this machine sleep while it computes answers.

    Raises:
        UsageError: an option is not valid.
    """
    options = JoinOptions(
        code=code,
        token=token,
        peers=tuple(map(Address.parse, peers)),
        layers=LayerRange.parse(layers) if layers else None,
        memory=parse_bytes(memory) if isinstance(memory, str) else memory,
        backend=backend,
        threads=threads,
        listen=Address.parse(listen) if listen else None,
        replace=replace,
        draft=draft,
        tensor=tensor,
        allow_sleep=allow_sleep,
    )
    return JoinedNode(options.member())


def stage(
    model: str,
    layers: str,
    *,
    listen: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    exact: bool = False,
    kv_bits: int | None = None,
    insecure: bool = False,
) -> LoneStage:
    """Run one stage outside of any cluster, unencrypted, like `edgepp join -m MODEL --layers A-B`.

    Args:
        model: A name such as ``smollm2-135m``, a Hugging Face repository, or a folder.
        layers: First and last layer to run, like ``0-14``.
        listen: ``HOST:PORT`` at which the stage listens; default: loopback and a free port.
        backend: ``auto``, ``mlx`` or ``onnx``.
        threads: Compute threads; default: all cores.
        exact: Float32 arithmetic, so that tokens do not depend on the split; slower.
        kv_bits: Bits per key and value in the KV caches, 8 or 4; None for unquantized floats.
        insecure: Allow an address that other machines can reach.

    Raises:
        UsageError: an option is not valid, or other machines can reach ``listen`` and ``insecure`` is not set.
    """
    options = JoinOptions(
        model=model,
        layers=LayerRange.parse(layers),
        listen=Address.parse(listen) if listen else None,
        backend=backend,
        threads=threads,
        exact=exact,
        kv_bits=kv_bits,
        insecure=insecure,
    )
    return LoneStage(options.lone_stage())
