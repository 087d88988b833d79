"""The ``edgepp`` command: one function a command, nothing heavy imported until a command runs."""

from __future__ import annotations

import json
import platform
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from edgepp import __version__
from edgepp.errors import EdgeppError, UsageError

if TYPE_CHECKING:
    from edgepp.engine.pipeline import PipelineOptions
    from edgepp.engine.request import GenerateOptions
    from edgepp.wire.messages import Codec

_MODEL_HELP = "A card name (see `edgepp models list`), a hub repository (org/name), or a folder in mlx-lm format."
_BACKENDS = click.Choice(["auto", "mlx", "onnx"])


class _Group(click.Group):
    """Shows commands in the order in which a newcomer needs them."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version")
def cli() -> None:
    """One language model on the machines you have.

    Each machine runs a range of the model's layers; hidden states pass from one to the next.

    \b
    Try it here, on two stage processes:
        edgepp chat -m smollm2-135m --stages 2
    On two machines, one stage each (on a network you trust, until pairing exists):
        one$  edgepp join -m smollm2-135m --layers 0-14  --listen 192.168.1.20:5720 --insecure
        two$  edgepp join -m smollm2-135m --layers 15-29 --listen 192.168.1.21:5720 --insecure
        any$  edgepp chat -m smollm2-135m --peer 192.168.1.20:5720 --peer 192.168.1.21:5720
    """


@cli.command()
@click.option("-m", "--model", required=True, help=_MODEL_HELP)
@click.option("-p", "--prompt", help="Answer this and leave. Piped input does the same.")
@click.option(
    "--peer", "peers", multiple=True, metavar="HOST:PORT", help="A node that runs `edgepp join`; once a node."
)
@click.option("--stages", type=int, metavar="K", help="Split over K stage processes on this machine.")
@click.option("--system", help="A system prompt.")
@click.option("--raw", is_flag=True, help="Send the prompt as it is, without the model's chat template.")
@click.option("-n", "--max-tokens", type=int, default=512, show_default=True, help="The longest answer.")
@click.option("--temp", type=float, default=0.0, show_default=True, help="Temperature; 0 takes the likeliest token.")
@click.option("--top-p", type=float, default=1.0, help="Draw from the likeliest tokens that together reach this.")
@click.option("--top-k", type=int, default=0, help="Draw from so many of the likeliest tokens.")
@click.option("--min-p", type=float, default=0.0, help="Leave out tokens less likely than this share of the likeliest.")
@click.option("--repetition-penalty", type=float, default=1.0, help="Above 1, makes recent tokens less likely.")
@click.option("--seed", type=int, help="Makes a drawn answer repeatable.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be given again.")
@click.option("--ignore-eos", is_flag=True, help="Go on to --max-tokens; for measurements.")
@click.option("--backend", type=_BACKENDS, default="auto", help="What computes on this machine.")
@click.option("--threads", type=int, metavar="N", help="Compute threads a stage on this machine.")
@click.option("--exact", is_flag=True, help="Float32 arithmetic, so that tokens do not depend on the split; slower.")
@click.option("--codec", default="none", help="Codec of every link, or one a link: none, lz4, zstd, int8 (lossy).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with text, tokens, rates and stages.")
def chat(prompt: str | None, system: str | None, *, raw: bool, as_json: bool, **options: Any) -> None:
    """Chat with a model: over peers, over local stages, or on this machine alone."""
    from edgepp.engine.pipeline import Pipeline
    from edgepp.ui.chat import Conversation, answer_once
    from edgepp.ui.progress import ByteProgress

    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().rstrip("\n")
    if prompt is None and (as_json or raw):
        raise UsageError("--json and --raw need a prompt", "give it with -p or pipe it in")
    if raw and system is not None:
        raise UsageError("--raw leaves no place for --system", "write it into the prompt")
    where, how = _pipeline_options(**options), _generate_options(**options)

    def open_pipeline() -> Pipeline:
        with ByteProgress(quiet=as_json) as progress:
            return Pipeline(where, progress)

    if prompt is None:
        Conversation(open_pipeline, how, system).run()
        return
    if not prompt.strip():
        raise UsageError("the prompt is empty", "say something")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    with open_pipeline() as pipeline:
        answer_once(pipeline, prompt if raw else messages, how, as_json=as_json)


def _pipeline_options(
    *,
    model: str,
    peers: tuple[str, ...],
    stages: int | None,
    backend: str,
    threads: int | None,
    exact: bool,
    codec: str,
    **_: Any,
) -> PipelineOptions:
    from edgepp.engine.pipeline import PipelineOptions
    from edgepp.wire.transport import Address

    addresses = tuple(Address.parse(peer) for peer in peers)
    return PipelineOptions(model, addresses, stages, backend, threads, exact, _codecs(codec))


def _codecs(text: str) -> tuple[Codec, ...]:
    from edgepp.wire.codec import NAMES

    wanted = text.split(",")
    known: dict[str, Codec] = {name: name for name in NAMES}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"there is no codec '{unknown[0]}'", f"choose from {', '.join(NAMES)}")
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
    seed: int | None,
    **_: Any,
) -> GenerateOptions:
    from edgepp.engine.request import GenerateOptions, SamplingOptions

    sampling = SamplingOptions(temp, repetition_penalty, top_p, min_p, top_k, seed)
    return GenerateOptions(max_tokens, stop, ignore_eos, sampling)


@cli.command()
@click.option("-m", "--model", required=True, help=_MODEL_HELP)
@click.option("--layers", required=True, metavar="A-B", help="First and last layer to run, like 0-14; counted from 0.")
@click.option(
    "--listen",
    default="127.0.0.1:0",
    show_default=True,
    metavar="HOST:PORT",
    help="This machine's address for other nodes. Uses PORT and the one after it; 0 takes any two.",
)
@click.option("--insecure", is_flag=True, help="Allow an address that others can reach, although nothing is encrypted.")
@click.option("--backend", type=_BACKENDS, default="auto", help="What computes.")
@click.option("--threads", type=int, metavar="N", help="Compute threads; all cores unless given.")
@click.option("--exact", is_flag=True, help="Float32 arithmetic, as `edgepp chat --exact` asks of every stage.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready.")
def join(
    model: str,
    layers: str,
    listen: str,
    backend: str,
    threads: int | None,
    *,
    insecure: bool,
    exact: bool,
    as_json: bool,
) -> None:
    """Make this machine a node that runs some of a model's layers, until Ctrl-C."""
    from edgepp.layers import LayerRange
    from edgepp.model.fetch import fetch
    from edgepp.model.parts import Parts
    from edgepp.node.agent import StageProcess, check_listen, physical_cores
    from edgepp.node.stage import StageConfig
    from edgepp.ui.join import announce, serve_until_stopped
    from edgepp.ui.progress import ByteProgress
    from edgepp.wire.transport import Address

    wanted, address = LayerRange.parse(layers), Address.parse(listen)
    check_listen(address, insecure=insecure)
    _stop_on_terminate()
    with ByteProgress(quiet=as_json) as progress:
        path = fetch(model, Parts(layers=wanted), progress)
        config = StageConfig(
            path=str(path),
            model=model,
            node=platform.node(),
            start=wanted.start,
            stop=wanted.stop,
            listen=str(address),
            backend=backend,
            threads=threads or physical_cores(),
            exact=exact,
            spin=threads is None,
            awake=threads is None or threads <= physical_cores(),
        )
        child = StageProcess(config)
        try:
            ready = child.wait_ready(lambda done, total: progress(done, total, f"layers {wanted}"))
        except BaseException:
            child.stop()
            raise
    try:
        announce(config, ready, as_json=as_json)
        serve_until_stopped(child)
    finally:
        child.stop()


def _stop_on_terminate() -> None:
    """Let SIGTERM end a command as Ctrl-C does, so that it cleans up."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


@cli.group(cls=_Group)
def models() -> None:
    """Models that edgepp knows, and what of them is on this disk."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models_list(*, as_json: bool) -> None:
    """List the models with a card."""
    from edgepp.ui.models import list_cards

    list_cards(as_json=as_json)


@models.command("show")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models_show(model: str, *, as_json: bool) -> None:
    """Show a model's shape and sizes. Downloads nothing when it has a card."""
    from edgepp.ui.models import show_model

    show_model(model, as_json=as_json)


@models.command("pull")
@click.argument("model")
@click.option("--layers", metavar="A-B", help="Only what a node with these layers needs.")
@click.option("--json", "as_json", is_flag=True, help='End with {"path": ...}.')
def models_pull(model: str, layers: str | None, *, as_json: bool) -> None:
    """Fetch a model, or one node's part of it, into the cache."""
    from edgepp.layers import LayerRange
    from edgepp.model.fetch import fetch
    from edgepp.model.parts import WHOLE, Parts
    from edgepp.ui.progress import ByteProgress

    parts = WHOLE if layers is None else Parts(layers=LayerRange.parse(layers))
    with ByteProgress(quiet=as_json) as progress:
        path = fetch(model, parts, progress)
    click.echo(json.dumps({"path": str(path)}) if as_json else f"{model} is in {path}")


def main() -> None:
    """Entry point: run a command, turn what went wrong into one sentence and an exit status."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except EdgeppError as error:
        from edgepp.ui.chat import show_error

        show_error(error)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
