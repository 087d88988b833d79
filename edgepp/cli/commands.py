"""The ``edgepp`` command: one function a command, nothing heavy imported until a command runs."""

from __future__ import annotations

import click

from edgepp import __version__
from edgepp.cli import bench, chat, cluster, models, plan
from edgepp.cli import serve_join as nodes
from edgepp.cli.options import CommandGroup


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version")
def cli() -> None:
    """One language model on the machines you have.

    Each machine runs a range of the model's layers; hidden states pass from one to the next.

    \b
    Try it here, on two stage processes:
        edgepp chat -m smollm2-135m --stages 2
    On two machines:
        one$  edgepp serve -m smollm2-135m      # runs what fits, waits for others
        one$  edgepp invite                     # prints a code, such as 7-tango-lemon
        two$  edgepp join 7-tango-lemon         # the layers are spread by memory
        any$  edgepp chat
    """
    import logging

    from edgepp.printable import PrintableFormatter

    if logging.lastResort is not None:  # what libraries and edgepp's own rooms log, where nobody set up more
        logging.lastResort.setFormatter(PrintableFormatter("%(message)s"))


for command in (
    chat.chat,
    nodes.serve,
    cluster.invite,
    nodes.join,
    cluster.status,
    cluster.doctor,
    cluster.peers,
    cluster.revoke,
    cluster.token,
    cluster.leave,
    plan.plan,
    bench.bench,
    models.models,
):
    cli.add_command(command)
