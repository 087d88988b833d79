"""The ``edgepp`` command with its subcommands; each subcommand imports what it needs when it runs."""

from __future__ import annotations

import click

from edgepp import __version__
from edgepp.cli import bench, chat, cluster, keys, launch, models, plan, selftest, service, trace, version
from edgepp.cli import serve_join as nodes
from edgepp.cli.options import CommandGroup


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version")
def cli() -> None:
    """Run one language model on several machines.

    Each machine runs a range of the model's layers and sends hidden states to the next one.

    \b
    Try it on this machine, with two stage processes:
        edgepp chat -m smollm2-135m --stages 2
    On two machines:
        one$  edgepp serve -m smollm2-135m   # starts a cluster and keeps running
        one$  edgepp invite                  # prints a code, such as 7-tango-lemon
        two$  edgepp join 7-tango-lemon      # takes its share of the layers
        any$  edgepp chat
    From the clients of OpenAI, Anthropic and Ollama, while `edgepp serve` runs:
        http://127.0.0.1:11434
    If something does not work:
        edgepp doctor
    """
    import logging

    from edgepp.printable import PrintableFormatter

    if logging.lastResort is not None:  # for log records of libraries and of edgepp: no other handler is installed
        logging.lastResort.setFormatter(PrintableFormatter("%(message)s"))


for command in (
    chat.chat,
    nodes.serve,
    cluster.invite,
    nodes.join,
    cluster.status,
    trace.trace,
    cluster.use,
    cluster.drain,
    cluster.doctor,
    cluster.peers,
    cluster.revoke,
    cluster.token,
    keys.keys,
    launch.launch,
    cluster.leave,
    plan.plan,
    bench.bench,
    selftest.selftest,
    models.models,
    service.service,
    version.version,
    version.completion,
):
    cli.add_command(command)
