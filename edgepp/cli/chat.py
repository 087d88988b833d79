"""`edgepp chat`."""

from __future__ import annotations

import os
import select
import stat
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import click

from edgepp.cli.generate import drawn, generate_options
from edgepp.cli.options import BACKENDS, KV_BITS, KV_BITS_HELP, MODEL_HELP, SPECULATE_HELP, Text, TextFile, piped
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.api import Connection, Engine
    from edgepp.engine.request import GenerateOptions
    from edgepp.wire.messages import LinkCodec

_PATIENCE_S = 2.0


@click.command()
@click.option("-m", "--model", help=MODEL_HELP + " The cluster's, unless given.")
@click.option(
    "-p", "--prompt", type=Text(), help="Answer this and leave. Piped input does the same; both are one prompt."
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="HOST:PORT",
    help="Where `edgepp serve` runs; or a stage of `edgepp join -m M --layers A-B`, once a stage.",
)
@click.option("--stages", type=int, metavar="K", help="Split over K stage processes on this machine.")
@click.option("--alone", is_flag=True, help="Run the model on this machine, although it belongs to a cluster.")
@click.option("--system", type=Text(), help="A system prompt.")
@click.option("--raw", is_flag=True, help="Send the prompt as it is, without the model's chat template.")
@click.option("--choices", type=int, metavar="N", help="Answer the prompt N times at once; numbered.")
@click.option("-n", "--max-tokens", type=int, default=512, show_default=True, help="The longest answer.")
@click.option(
    "--temperature",
    "--temp",
    type=float,
    help="0 takes the likeliest token each time. Unless given, tokens are drawn as the model's makers recommend.",
)
@click.option("--top-p", type=float, help="Draw from the likeliest tokens that together reach this.")
@click.option("--top-k", type=int, help="Draw from so many of the likeliest tokens.")
@click.option("--min-p", type=float, default=0.0, help="Leave out tokens less likely than this share of the likeliest.")
@click.option("--repetition-penalty", type=float, help="Above 1, makes recent tokens less likely.")
@click.option("--frequency-penalty", type=float, default=0.0, help="Above 0, against words as often as they came.")
@click.option("--presence-penalty", type=float, default=0.0, help="Above 0, against words that came at all.")
@click.option(
    "--logprobs", type=int, metavar="K", help="Show each token's probability, and its K likeliest alternatives."
)
@click.option("--schema", type=TextFile(), metavar="FILE", help="Answer in JSON that fits this JSON schema.")
@click.option("--regex", type=Text(), metavar="PATTERN", help="Answer in text that matches this from end to end.")
@click.option("--grammar", type=TextFile(), metavar="FILE", help="Answer in text of this Lark grammar.")
@click.option("--seed", type=int, help="Makes a drawn answer repeatable.")
@click.option(
    "--stop", type=Text(), multiple=True, metavar="TEXT", help="End the answer before this text; may be given again."
)
@click.option("--ignore-eos", is_flag=True, help="Go on to --max-tokens; for measurements.")
@click.option("--backend", type=BACKENDS, default="auto", help="What computes on this machine.")
@click.option("--threads", type=int, metavar="N", help="Compute threads a stage on this machine.")
@click.option(
    "--exact",
    is_flag=True,
    help="Float32 arithmetic, so that tokens do not depend on the split; slower. Takes the likeliest token each time,"
    " unless --temperature or --seed is given.",
)
@click.option(
    "--codec",
    default="auto",
    show_default=True,
    help="Codec of every link, or one a link: auto (what saves time), none, lz4, zstd, int8 (lossy).",
)
@click.option("--kv-bits", type=KV_BITS, help=KV_BITS_HELP + " On this machine's pipeline.")
@click.option("--speculate", default="lookup", metavar="HOW", help=SPECULATE_HELP + " On this machine's pipeline.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with text, tokens, rates and stages.")
def chat(
    prompt: str | None, system: str | None, *, choices: int | None, raw: bool, as_json: bool, **options: Any
) -> None:
    """Chat with a model: through this machine's cluster, over local stages, or on this machine alone."""
    import asyncio

    prompt = _with_piped(prompt)
    if prompt is None and (as_json or raw or choices is not None):
        raise UsageError("--json, --raw and --choices need a prompt", "give it with -p or pipe it in")
    if raw and system is not None:
        raise UsageError("--raw leaves no place for --system", "write it into the prompt")
    if prompt is None and (sys.stdin is None or sys.stdin.closed):
        raise UsageError("standard input is closed, so nothing can be typed", "give a prompt with -p")
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty", "say something")
    how, given = generate_options(**options)
    if choices is not None:
        from edgepp.api.question import each

        each(choices, how)  # refuses a number before a model is loaded for it
    asyncio.run(_chat(prompt, system, how, given, choices, raw=raw, as_json=as_json, **options))


def _with_piped(prompt: str | None) -> str | None:
    """The prompt with what is piped in below it; None where there is neither.

    Beside a prompt only a pipe or a file is read: other kinds of input may never end.

    Raises:
        UsageError: what is piped in is too long, or not UTF-8.
    """
    from edgepp.ui.screen import say

    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return prompt
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if prompt is not None:
        if not stat.S_ISFIFO(mode) and not stat.S_ISREG(mode):
            return prompt
        if not select.select([sys.stdin.fileno()], [], [], _PATIENCE_S)[0]:
            say("waiting for the end of the piped input, which belongs to the prompt (</dev/null for none)", err=True)
    text = piped().rstrip("\n")
    return text if prompt is None else "\n\n".join(part for part in (prompt, text) if part.strip())


async def _chat(
    prompt: str | None,
    system: str | None,
    how: GenerateOptions,
    given: dict[str, Any],
    choices: int | None,
    *,
    raw: bool,
    as_json: bool,
    **options: Any,
) -> None:
    from edgepp.ui.chat import answer_once, answer_several
    from edgepp.ui.screen import say

    model = await _opened(as_json=as_json, **options)
    try:
        how = replace(how, sampling=drawn(how.sampling, model.sampling, given, exact=options["exact"]))
        if choices is not None and choices > 1 and not how.sampling.temperature:
            say("at temperature 0 all choices are equal: give --temperature 0.8, say", err=True)
        if prompt is None:
            from edgepp.ui.conversation import Conversation

            await Conversation(model, how, system).run()
            return
        messages = [{"role": "system", "content": system}] if system else []
        asked = prompt if raw else [*messages, {"role": "user", "content": prompt}]
        if choices is None:
            await answer_once(model, asked, how, raw=raw, as_json=as_json)
        else:
            await answer_several(model, asked, choices, how, raw=raw, as_json=as_json)
    finally:
        await model.close()


async def _opened(
    *,
    as_json: bool,
    alone: bool,
    model: str | None,
    peers: tuple[str, ...],
    stages: int | None,
    backend: str,
    threads: int | None,
    exact: bool,
    codec: str,
    kv_bits: str | None,
    speculate: str,
    **_: Any,
) -> Engine | Connection:
    """What answers: the cluster where there is one and nothing else was asked for, or this machine."""
    from edgepp.api import Engine
    from edgepp.ui.chat import open_here
    from edgepp.ui.screen import say

    here = {"--stages": stages, "--threads": threads, "--backend": backend != "auto", "--kv-bits": kv_bits}
    here |= {"--codec": codec != "auto", "--alone": alone}
    meant = [name for name, is_given in here.items() if is_given]
    if not meant and len(peers) < 2 and (cluster := await _cluster(model, peers, exact=exact)) is not None:
        if speculate != "lookup":
            say("the cluster decides how to guess: --speculate does nothing here", dim=True, err=True)
        return cluster
    if meant and not alone and not peers and (name := _cluster_of()) is not None:
        say(f"{' and '.join(meant)} is for this machine alone: the cluster of {name} is not asked", dim=True, err=True)
    if model is None:
        if meant:
            raise UsageError(
                f"{meant[0]} runs a model on this machine, and none is named",
                f"name one with -m, such as -m smollm2-135m, or leave {meant[0]} out to ask the cluster",
            )
        raise UsageError("which model? This machine reaches no cluster", "name one with -m, such as -m smollm2-135m")
    engine = Engine(
        model,
        stages=stages,
        peers=peers,
        backend=backend,
        threads=threads,
        exact=exact,
        codecs=_codecs(codec),
        speculate=speculate,
        kv_bits=int(kv_bits) if kv_bits else None,
    )
    await open_here(engine, quiet=as_json)
    return engine


def _cluster_of() -> str | None:
    """The name of the coordinator of this machine's cluster, if it belongs to one."""
    from edgepp.cluster.identity import load_cluster

    cluster = load_cluster()
    return None if cluster is None else cluster.coordinator.name


async def _cluster(model: str | None, peers: tuple[str, ...], *, exact: bool) -> Connection | None:
    """This machine's cluster; None where there is none that answers, or it runs another model."""
    from edgepp.api import connect
    from edgepp.errors import PairingError, PeerLost
    from edgepp.ui.screen import say

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
        say(f"the cluster runs {cluster.model}; {model} runs on this machine alone", dim=True, err=True)
        return None
    if exact and not cluster.status["exact"]:
        raise UsageError("the cluster does not compute exactly", "restart `edgepp serve --exact`, or add --alone")
    return cluster


def _codecs(text: str) -> tuple[LinkCodec, ...]:
    from edgepp.wire.messages import LinkCodec

    names = get_args(LinkCodec)
    wanted = text.split(",")
    known: dict[str, LinkCodec] = {name: name for name in names}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"there is no codec '{unknown[0]}'", f"choose from {', '.join(names)}")
    return tuple(known[name] for name in wanted)
