"""`edgepp chat`."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import click

from edgepp.cli.answer_options import GenerateArguments, drawn
from edgepp.cli.options import (
    BACKENDS,
    KV_BITS,
    KV_BITS_HELP,
    MODEL_HELP,
    SPECULATE_HELP,
    Text,
    TextFile,
    given_as,
    piped,
)
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.api import Connection, Engine
    from edgepp.engine.request import GenerateOptions
    from edgepp.wire.field_types import LinkCodec

_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Asking:
    """What is asked, and how the answer is shown."""

    prompt: str | None = None
    """None for an interactive chat."""
    system: str | None = None
    raw: bool = False
    choices: int | None = None
    as_json: bool = False

    def with_piped(self) -> Asking:
        """The same with what is piped in below the prompt, checked.

        Raises:
            UsageError: the options contradict each other, or what is piped in cannot be used.
        """
        prompt = _with_piped(self.prompt)
        if prompt is None and (self.as_json or self.raw or self.choices is not None):
            raise UsageError("--json, --raw and --choices need a prompt", "give it with -p or pipe it in")
        if self.raw and self.system is not None:
            raise UsageError("--raw leaves no place for --system", "write it into the prompt")
        if prompt is None and (sys.stdin is None or sys.stdin.closed):
            raise UsageError("standard input is closed, so nothing can be typed", "give a prompt with -p")
        if prompt is not None and not prompt.strip():
            raise UsageError("the prompt is empty", "say something")
        return replace(self, prompt=prompt)


@dataclass(frozen=True)
class Where:
    """Which model answers, and where it runs."""

    model: str | None = None
    """The cluster's, unless given."""
    peers: tuple[str, ...] = ()
    stages: int | None = None
    alone: bool = False
    backend: str = "auto"
    threads: int | None = None
    exact: bool = False
    codec: str = "auto"
    kv_bits: int | None = None
    speculate: str = "lookup"

    @property
    def of_this_machine(self) -> list[str]:
        """The options that were given and concern a model on this machine."""
        given = {"--stages": self.stages, "--threads": self.threads, "--backend": self.backend != "auto"}
        given |= {"--kv-bits": self.kv_bits, "--codec": self.codec != "auto", "--alone": self.alone}
        return [name for name, is_given in given.items() if is_given]


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
@click.option("-n", "--max-tokens", type=int, help="The longest answer.  [default: 512]")
@click.option(
    "--temperature",
    "--temp",
    type=float,
    help="0 takes the likeliest token each time. Unless given, tokens are drawn as the model's makers recommend.",
)
@click.option("--top-p", type=float, help="Draw from the likeliest tokens that together reach this.")
@click.option("--top-k", type=int, help="Draw from so many of the likeliest tokens.")
@click.option("--min-p", type=float, help="Leave out tokens less likely than this share of the likeliest.")
@click.option("--repetition-penalty", type=float, help="Above 1, makes recent tokens less likely.")
@click.option("--frequency-penalty", type=float, help="Above 0, against words as often as they came.")
@click.option("--presence-penalty", type=float, help="Above 0, against words that came at all.")
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
@click.option("--backend", type=BACKENDS, help="What computes on this machine.")
@click.option("--threads", type=int, metavar="N", help="Compute threads a stage on this machine.")
@click.option(
    "--exact",
    is_flag=True,
    help="Float32 arithmetic, so that tokens do not depend on the split; slower. Takes the likeliest token each time,"
    " unless --temperature or --seed is given.",
)
@click.option(
    "--codec",
    help="Codec of every link, or one a link: auto (what saves time), none, lz4, zstd, int8 (lossy).  [default: auto]",
)
@click.option("--kv-bits", type=KV_BITS, help=KV_BITS_HELP + " On this machine's pipeline.")
@click.option("--speculate", metavar="HOW", help=SPECULATE_HELP + " On this machine's pipeline.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with text, tokens, rates and stages.")
@given_as(lambda: Asking, lambda: GenerateArguments, lambda: Where)
def chat(asking: Asking, generating: GenerateArguments, where: Where) -> None:
    """Chat with a model: through this machine's cluster, over local stages, or on this machine alone."""
    import asyncio

    asking, how = asking.with_piped(), generating.options()
    if asking.choices is not None:
        from edgepp.api.question import each

        each(asking.choices, how)  # refuses a number before a model is loaded for it
    asyncio.run(_chat(asking, how, generating.given, where))


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


async def _chat(asking: Asking, how: GenerateOptions, given: Mapping[str, Any], where: Where) -> None:
    from edgepp.ui.chat import answer_once, answer_several
    from edgepp.ui.screen import say

    prompt, system, choices = asking.prompt, asking.system, asking.choices
    model = await _opened(where, quiet=asking.as_json)
    try:
        how = replace(how, sampling=drawn(how.sampling, model.sampling, given, exact=where.exact))
        if choices is not None and choices > 1 and not how.sampling.temperature:
            say("at temperature 0 all choices are equal: give --temperature 0.8, say", err=True)
        if prompt is None:
            from edgepp.ui.conversation import Conversation

            await Conversation(model, how, system).run()
            return
        messages = [{"role": "system", "content": system}] if system else []
        asked = prompt if asking.raw else [*messages, {"role": "user", "content": prompt}]
        if choices is None:
            await answer_once(model, asked, how, raw=asking.raw, as_json=asking.as_json)
        else:
            await answer_several(model, asked, choices, how, raw=asking.raw, as_json=asking.as_json)
    finally:
        await model.close()


async def _opened(where: Where, *, quiet: bool) -> Engine | Connection:
    """What answers: the cluster where there is one and nothing else was asked for, or this machine."""
    from edgepp.api import Engine
    from edgepp.ui.chat import open_here
    from edgepp.ui.screen import say

    meant = where.of_this_machine
    if not meant and len(where.peers) < 2 and (cluster := await _cluster(where)) is not None:
        if where.speculate != "lookup":
            say("the cluster decides how to guess: --speculate does nothing here", dim=True, err=True)
        return cluster
    if meant and not where.alone and not where.peers and (name := _cluster_of()) is not None:
        say(f"{' and '.join(meant)} is for this machine alone: the cluster of {name} is not asked", dim=True, err=True)
    if where.model is None:
        if meant:
            raise UsageError(
                f"{meant[0]} runs a model on this machine, and none is named",
                f"name one with -m, such as -m smollm2-135m, or leave {meant[0]} out to ask the cluster",
            )
        raise UsageError("which model? This machine reaches no cluster", "name one with -m, such as -m smollm2-135m")
    engine = Engine(
        where.model,
        stages=where.stages,
        peers=where.peers,
        backend=where.backend,
        threads=where.threads,
        exact=where.exact,
        codecs=_codecs(where.codec),
        speculate=where.speculate,
        kv_bits=where.kv_bits,
    )
    await open_here(engine, quiet=quiet)
    return engine


def _cluster_of() -> str | None:
    """The name of the coordinator of this machine's cluster, if it belongs to one."""
    from edgepp.cluster.identity import load_cluster

    cluster = load_cluster()
    return None if cluster is None else cluster.coordinator.name


async def _cluster(where: Where) -> Connection | None:
    """This machine's cluster; None where there is none that answers, or it runs another model."""
    from edgepp.api import connect
    from edgepp.errors import PairingError, PeerLost
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
        say(f"the cluster runs {cluster.model}; {model} runs on this machine alone", dim=True, err=True)
        return None
    if where.exact and not cluster.status["exact"]:
        raise UsageError("the cluster does not compute exactly", "restart `edgepp serve --exact`, or add --alone")
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
