"""`edgepp serve` and `edgepp join`: the commands that run until they are stopped."""

from __future__ import annotations

import platform

import click

from edgepp.cli.options import BACKENDS, KV_BITS, KV_BITS_HELP, MODEL_HELP, SPECULATE_HELP, stop_on_terminate
from edgepp.errors import UsageError


@click.command()
@click.option("-m", "--model", default="smollm2-135m", show_default=True, help=MODEL_HELP)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Where nodes and chats reach this; every address, port 5700 unless given. The next port is for invitations.",
)
@click.option("--stages", type=int, metavar="K", help="Run K stage processes here, for a try-out on one machine.")
@click.option("--no-stage", is_flag=True, help="Coordinate only: this machine holds no layers.")
@click.option("--layers", metavar="A-B", help="Pin this machine's range; the rest is fitted around it.")
@click.option("--memory", metavar="SIZE", help="The most that the model may use here, like 8GB; all that is free.")
@click.option(
    "--policy",
    type=click.Choice(["memory", "speed", "throughput"]),
    default="memory",
    show_default=True,
    help="Layers in proportion to memory; for the fastest single answer; for the least slow stage.",
)
@click.option("--context", type=int, default=4096, show_default=True, help="Positions of a conversation to plan for.")
@click.option("--slots", type=int, default=2, show_default=True, help="Conversations at a time to plan for.")
@click.option("--backend", type=BACKENDS, default="auto", help="What computes here.")
@click.option("--threads", type=int, metavar="N", help="Compute threads here; all cores unless given.")
@click.option(
    "--exact", is_flag=True, help="Float32 arithmetic on every node, so that tokens do not depend on the split."
)
@click.option("--kv-bits", type=KV_BITS, help=KV_BITS_HELP)
@click.option("--speculate", default="lookup", metavar="HOW", help=SPECULATE_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line: listening, note, ready.")
def serve(
    model: str,
    listen: str | None,
    stages: int | None,
    layers: str | None,
    memory: str | None,
    policy: str,
    context: int,
    slots: int,
    backend: str,
    threads: int | None,
    kv_bits: str | None,
    speculate: str,
    *,
    no_stage: bool,
    exact: bool,
    as_json: bool,
) -> None:
    """Run a cluster from here: this machine's own part, and the place that others join.

    Ctrl-C stops it; the cluster stays, and goes on when this is run again. `edgepp leave` here ends the cluster.
    """
    from edgepp.coordinator.service import PORT, ServeOptions
    from edgepp.layers import LayerRange
    from edgepp.node.resources import parse_bytes
    from edgepp.ui.serve import run
    from edgepp.wire.transport import Address

    if no_stage and stages is not None:
        raise UsageError("--stages and --no-stage exclude each other")
    stop_on_terminate()
    run(
        ServeOptions(
            model=model,
            listen=Address.parse(listen) if listen else Address("*", PORT),
            stages=0 if no_stage else stages or 1,
            pinned=LayerRange.parse(layers) if layers else None,
            memory=parse_bytes(memory) if memory else None,
            policy=policy,  # type: ignore[arg-type]  # click has checked it
            context=context,
            slots=slots,
            backend=backend,
            threads=threads,
            exact=exact,
            kv_bits=int(kv_bits) if kv_bits else None,
            speculate=speculate,
        ),
        as_json=as_json,
    )


@click.command()
@click.argument("code", required=False)
@click.option("--layers", metavar="A-B", help="Pin the first and last layer to run, like 0-14; by memory unless given.")
@click.option("--memory", metavar="SIZE", help="The most that the model may use here, like 8GB; all that is free.")
@click.option(
    "--peer", "peers", multiple=True, metavar="HOST:PORT", help="Where `edgepp serve` runs, if it is not found."
)
@click.option("--backend", type=BACKENDS, default="auto", help="What computes.")
@click.option("--threads", type=int, metavar="N", help="Compute threads; all cores unless given.")
@click.option("--exact", is_flag=True, help="With -m: float32 arithmetic. In a cluster `edgepp serve --exact` decides.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Where other nodes reach this stage; uses PORT and the one after it. In a cluster: any address and free port.",
)
@click.option("--kv-bits", type=KV_BITS, help="With -m: " + KV_BITS_HELP + " In a cluster `serve --kv-bits` decides.")
@click.option("--replace", is_flag=True, help="Belong to the cluster of CODE or token instead of the present one.")
@click.option("-m", "--model", help="With --layers: run one stage by hand, outside of any cluster. " + MODEL_HELP)
@click.option(
    "--insecure", is_flag=True, help="With -m: allow an address that others can reach, with nothing encrypted."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready, or one a line in a cluster.")
def join(
    code: str | None,
    layers: str | None,
    memory: str | None,
    peers: tuple[str, ...],
    backend: str,
    threads: int | None,
    listen: str | None,
    kv_bits: str | None,
    model: str | None,
    *,
    exact: bool,
    replace: bool,
    insecure: bool,
    as_json: bool,
) -> None:
    """Make this machine a node, until Ctrl-C.

    CODE is what `edgepp invite` printed; once paired, `edgepp join` alone is enough. With EDGEPP_TOKEN or a token file
    (see `edgepp token`) no code is needed.

    Ctrl-C stops the node; the machine still belongs to the cluster. `edgepp leave` ends it for good.

    \b
    A stage by hand, for `edgepp chat --peer`:
        edgepp join -m smollm2-135m --layers 0-14
    """
    from edgepp.layers import LayerRange
    from edgepp.node.resources import parse_bytes
    from edgepp.ui import join as ui
    from edgepp.wire.transport import Address

    stop_on_terminate()
    wanted = LayerRange.parse(layers) if layers else None
    if model is not None:
        if wanted is None or code is not None or peers or memory is not None or replace:
            raise UsageError(
                "-m runs one stage by hand: it needs --layers, and goes with no CODE, --peer, --memory or --replace",
                "in a cluster leave -m out: the model is the coordinator's",
            )
        stage = ui.StageByHand(
            model=model,
            layers=wanted,
            listen=Address.parse(listen or "127.0.0.1:0"),
            backend=backend,
            threads=threads,
            exact=exact,
            kv_bits=int(kv_bits) if kv_bits else None,
            insecure=insecure,
        )
        ui.run_stage(stage, platform.node(), as_json=as_json)
        return
    if kv_bits is not None:
        raise UsageError("--kv-bits goes with -m: in a cluster `edgepp serve --kv-bits` decides for every node")
    if insecure:
        raise UsageError("--insecure goes with -m and --layers only: a cluster is always encrypted")
    ui.run_member(
        ui.Membership(
            code=code,
            peers=tuple(Address.parse(peer) for peer in peers),
            pinned=wanted,
            memory=parse_bytes(memory) if memory else None,
            backend=backend,
            threads=threads,
            exact=exact,
            listen=Address.parse(listen) if listen else Address("*", 0),
            replace=replace,
        ),
        as_json=as_json,
    )
