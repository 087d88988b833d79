"""``edgepp.serve``: the options of a cluster that this program coordinates."""

from __future__ import annotations

import os
from collections.abc import Sequence

from edgepp.coordinator.composition_root import PORT, ServeOptions
from edgepp.layer_range import LayerRange
from edgepp.placement.values import Policy
from edgepp.plan.quantities import parse_bytes
from edgepp.python_api.served_cluster import ServedCluster
from edgepp.wire.address import Address


def serve(
    model: str | os.PathLike[str] = ServeOptions.model,
    *,
    listen: str | None = None,
    stages: int = ServeOptions.stages,
    tensor: int | Sequence[int] = 1,
    layers: str | None = None,
    memory: int | str | None = None,
    policy: Policy = ServeOptions.policy,
    context: int = ServeOptions.context,
    max_sequences: int = ServeOptions.max_sequences,
    backend: str = ServeOptions.backend,
    threads: int | None = None,
    exact: bool = False,
    kv_bits: int | None = None,
    speculate: str = ServeOptions.speculate,
    speculate_together: bool = False,
    keep_copies: int = ServeOptions.keep_copies,
    allow_sleep: bool = False,
) -> ServedCluster:
    """Coordinate a cluster from this program, like `edgepp serve`.

    Args:
        model: A name such as ``smollm2-135m``, a Hugging Face repository, or a folder.
        listen: ``HOST:PORT`` at which the coordinator listens; default: every address and port 5700.
        stages: Number of stages on this machine; 0 only coordinates.
        tensor: Number of processes that compute each layer of a stage here together, or their shares, such as (5, 3).
        layers: First and last layer that this machine runs, like ``0-14``; default: planned.
        memory: Memory limit of the model on this machine, in bytes or like ``8GB``; default: all free memory.
        policy: ``memory`` divides layers in proportion to memory; ``speed`` for the fastest single answer;
            ``throughput`` for most tokens per second of many answers.
        context: Tokens of the longest conversation to reserve memory for.
        max_sequences: Number of such conversations at a time.
        backend: ``auto``, ``mlx`` or ``onnx``.
        threads: Compute threads on this machine; default: all cores.
        exact: Float32 arithmetic on every node, so that tokens do not depend on the plan; slower.
        kv_bits: Bits per key and value in the KV caches, 8 or 4; None for unquantized floats.
        speculate: How tokens are guessed: ``lookup`` (from the owner's texts so far), the name of a small model that
            guesses too, or ``off``.
        speculate_together: Let one step carry several guesses: faster with one stage; answers may then differ from
            those without guesses where two tokens are nearly equally likely.
        keep_copies: Copies of each stage's keys and values on another node, 0 or 1; answers survive a lost node with
            them bit for bit, for twice the memory of conversations.
        allow_sleep: Let this machine sleep while answers are under way.

    Raises:
        UsageError: an option is not valid, or two options exclude each other.
    """
    return ServedCluster(
        ServeOptions(
            model=os.fspath(model),
            listen=Address.parse(listen) if listen else Address("*", PORT),
            stages=stages,
            tensor=(1,) * tensor if isinstance(tensor, int) else tuple(tensor),
            pinned=LayerRange.parse(layers) if layers else None,
            memory=parse_bytes(memory) if isinstance(memory, str) else memory,
            policy=policy,
            context=context,
            max_sequences=max_sequences,
            backend=backend,
            threads=threads,
            exact=exact,
            kv_bits=kv_bits,
            speculate=speculate,
            speculate_together=speculate_together,
            keep_copies=keep_copies,
            allow_sleep=allow_sleep,
        )
    )
