"""`edgepp chat`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, get_args

import click

from edgepp.cli.options import BACKENDS, KV_BITS, KV_BITS_HELP, MODEL_HELP, SPECULATE_HELP, Text, TextFile, piped
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.api import Connection, Engine
    from edgepp.engine.request import Constraint, GenerateOptions
    from edgepp.wire.messages import LinkCodec


@click.command()
@click.option("-m", "--model", help=MODEL_HELP + " The cluster's, unless given.")
@click.option("-p", "--prompt", type=Text(), help="Answer this and leave. Piped input does the same.")
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
@click.option("--temp", type=float, default=0.0, show_default=True, help="Temperature; 0 takes the likeliest token.")
@click.option("--top-p", type=float, default=1.0, help="Draw from the likeliest tokens that together reach this.")
@click.option("--top-k", type=int, default=0, help="Draw from so many of the likeliest tokens.")
@click.option("--min-p", type=float, default=0.0, help="Leave out tokens less likely than this share of the likeliest.")
@click.option("--repetition-penalty", type=float, default=1.0, help="Above 1, makes recent tokens less likely.")
@click.option("--frequency-penalty", type=float, default=0.0, help="Above 0, against words as often as they came.")
@click.option("--presence-penalty", type=float, default=0.0, help="Above 0, against words that came at all.")
@click.option(
    "--logprobs", type=int, metavar="K", help="With --json: each token's log-probability, and K alternatives."
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
@click.option("--exact", is_flag=True, help="Float32 arithmetic, so that tokens do not depend on the split; slower.")
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

    if prompt is None and not sys.stdin.isatty():
        prompt = piped().rstrip("\n")
    if prompt is None and (as_json or raw or choices is not None):
        raise UsageError("--json, --raw and --choices need a prompt", "give it with -p or pipe it in")
    if raw and system is not None:
        raise UsageError("--raw leaves no place for --system", "write it into the prompt")
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty", "say something")
    how = _generate_options(**options)
    asyncio.run(_chat(prompt, system, how, choices, raw=raw, as_json=as_json, **options))


async def _chat(
    prompt: str | None,
    system: str | None,
    how: GenerateOptions,
    choices: int | None,
    *,
    raw: bool,
    as_json: bool,
    **options: Any,
) -> None:
    from edgepp.ui.chat import Conversation, answer_once, answer_several

    model = await _opened(as_json=as_json, **options)
    try:
        if prompt is None:
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

    by_hand = alone or stages or threads or backend != "auto" or codec != "auto" or kv_bits or len(peers) > 1
    if not by_hand and (cluster := await _cluster(model, peers, exact=exact)) is not None:
        return cluster
    if model is None:
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


async def _cluster(model: str | None, peers: tuple[str, ...], *, exact: bool) -> Connection | None:
    """This machine's cluster; None where there is none that answers, or it runs another model."""
    from edgepp.api import connect
    from edgepp.errors import PairingError, PeerLost

    cluster = connect(*peers)
    if not cluster.paired:
        return None
    try:
        await cluster.open()
    except (PeerLost, PairingError) as error:
        if not peers:
            click.secho(f"{error}", dim=True, err=True)
        return None
    if peers and not cluster.at_peer:
        return None
    if model is not None and not cluster.runs(model):
        click.secho(f"the cluster runs {cluster.model}; {model} runs on this machine alone", dim=True, err=True)
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


def _generate_options(
    *,
    max_tokens: int,
    stop: tuple[str, ...],
    ignore_eos: bool,
    temp: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
    logprobs: int | None,
    seed: int | None,
    schema: str | None,
    regex: str | None,
    grammar: str | None,
    **_: Any,
) -> GenerateOptions:
    from edgepp.engine.request import GenerateOptions, SamplingOptions

    sampling = SamplingOptions(
        temp,
        repetition_penalty,
        top_p,
        min_p,
        top_k,
        seed,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        logprobs=logprobs,
    )
    return GenerateOptions(max_tokens, stop, ignore_eos, sampling, _constraint(schema, regex, grammar))


def _constraint(schema: str | None, regex: str | None, grammar: str | None) -> Constraint | None:
    from edgepp.engine.request import Constraint

    given = [
        *([Constraint("json_schema", schema)] if schema is not None else []),
        *([Constraint("regex", regex)] if regex is not None else []),
        *([Constraint("grammar", grammar)] if grammar is not None else []),
    ]
    if len(given) > 1:
        raise UsageError("--schema, --regex and --grammar exclude each other")
    return given[0] if given else None
