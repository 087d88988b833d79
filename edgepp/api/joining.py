"""This machine as a node: a member of a cluster, or one stage outside of any cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepp.api.background import Background
from edgepp.cluster.pairing.join import PairingOptions
from edgepp.errors import UsageError
from edgepp.layers import LayerRange
from edgepp.node.composition import LoneStageOptions, LoneStageService, MemberOptions, MemberService
from edgepp.node.resources import parse_bytes
from edgepp.wire.transport import Address


@dataclass(frozen=True)
class JoinOptions:
    """What `edgepp join` and ``edgepp.join`` take; ``join`` says what each means."""

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

    def member(self) -> MemberOptions:
        """The options of a member of a cluster.

        Raises:
            UsageError: an option makes no sense in a cluster.
        """
        if self.kv_bits is not None:
            raise UsageError("--kv-bits goes with -m: in a cluster `edgepp serve --kv-bits` decides for every node")
        if self.insecure:
            raise UsageError("--insecure goes with -m and --layers only: a cluster is always encrypted")
        return MemberOptions(
            pairing=PairingOptions(self.code, self.token, self.peers, self.replace),
            pinned=self.layers,
            memory_bytes=self.memory,
            backend=self.backend,
            threads=self.threads,
            exact=self.exact,
            listen=self.listen or Address("*", 0),
        )

    def lone_stage(self) -> LoneStageOptions:
        """The options of one stage outside of any cluster.

        Raises:
            UsageError: an option is missing, or goes with a cluster only.
        """
        of_a_cluster = (self.code, self.token, self.peers, self.memory, self.replace)
        if self.model is None or self.layers is None or any(of_a_cluster):
            raise UsageError(
                "-m runs one stage by hand: it needs --layers, and goes with no CODE, --peer, --memory or --replace",
                "in a cluster leave -m out: the model is the coordinator's",
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
    """This machine as a member of a cluster. Use it in an ``async with`` statement.

    Leaving the statement stops the node; the machine still belongs to the cluster.
    """

    def __init__(self, options: MemberOptions) -> None:
        super().__init__(lambda tell, progress, given_up: MemberService(options, tell, progress, given_up))

    @property
    def name(self) -> str:
        """This machine's name, as others see it."""
        return self._service.identity.name

    @property
    def node(self) -> str:
        """This machine's node id."""
        return self._service.identity.node

    @property
    def cluster(self) -> str:
        """The cluster's id."""
        return self._service.cluster.id

    @property
    def coordinator(self) -> str:
        """The name of the cluster's coordinator."""
        return self._service.cluster.coordinator.name

    @property
    def address(self) -> str | None:
        """Where the coordinator was reached, as ``HOST:PORT``; None until then."""
        address = self._service.address
        return None if address is None else str(address)


class LoneStage(Background[LoneStageService]):
    """One stage outside of any cluster. Use it in an ``async with`` statement; chat by ``Engine(model, peers=...)``."""

    def __init__(self, options: LoneStageOptions) -> None:
        super().__init__(lambda tell, progress, given_up: LoneStageService(options, tell, progress, given_up))

    @property
    def service(self) -> LoneStageService:
        """The stage's facts, once it is open."""
        return self._service

    @property
    def address(self) -> str:
        """Where the stage listens, as ``HOST:PORT``."""
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
) -> JoinedNode:
    """This machine as a node of a cluster, as `edgepp join` makes it.

    Args:
        code: What `edgepp invite` or ``ServedCluster.invite`` gave; once paired, no code is needed.
        token: What `edgepp token` or ``ServedCluster.token`` gave; ``EDGEPP_TOKEN`` or a token file unless given.
        peers: Where the coordinator may be, as ``HOST:PORT``; looked for on the network unless given.
        layers: The first and last layer to run, like ``0-14``; by memory unless given.
        memory: The most that the model may use here, in bytes or like ``8GB``; all that is free unless given.
        backend: ``auto``, ``mlx`` or ``onnx``.
        threads: Compute threads; all cores unless given.
        listen: Where other nodes reach this one's stage, as ``HOST:PORT``; any address and free port unless given.
        replace: Belong to the cluster of the code or token instead of the present one.

    Raises:
        UsageError: an option makes no sense.
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
    """One stage outside of any cluster, unencrypted, as `edgepp join -m MODEL --layers A-B` runs it.

    Args:
        model: A name such as ``smollm2-135m``, a repository of the hub, or a folder.
        layers: The first and last layer to run, like ``0-14``.
        listen: Where the stage is reached, as ``HOST:PORT``; loopback and a free port unless given.
        backend: ``auto``, ``mlx`` or ``onnx``.
        threads: Compute threads; all cores unless given.
        exact: Float32 arithmetic, so that tokens do not depend on the split; slower.
        kv_bits: Bits of a key or value in the KV caches, 8 or 4; None for the backend's own floats.
        insecure: Allow an address that other machines can reach.

    Raises:
        UsageError: an option makes no sense, or the address is reachable and ``insecure`` is not given.
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
