"""`edgepp service`: install, status, logs and remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgepp.cli.options import CommandGroup
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.host_system.service_definition import Role

DAEMON = click.option(
    "--daemon", is_flag=True, help="macOS: a daemon of the system, which runs as you; put `sudo` before the command."
)


@click.group(cls=CommandGroup)
def service() -> None:
    """Run `edgepp serve` or `edgepp join` as a service.

    The service starts by itself, and again when it fails. Linux: a user service of systemd. macOS: an agent of
    launchd, or with --daemon a daemon.
    """


@service.command("install")
@click.argument("role", type=click.Choice(["serve", "join"]))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--print", "only_print", is_flag=True, help="Print the file of the service, and change nothing.")
@click.option(
    "--linger/--no-linger",
    default=None,
    help="Linux: keep the service running while you are not logged in.  [default: asks]",
)
@DAEMON
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def install(
    role: Role, options: tuple[str, ...], *, only_print: bool, linger: bool | None, daemon: bool, as_json: bool
) -> None:
    """Install and start the service, in place of one installed before.

    OPTIONS are those of `edgepp serve` or `edgepp join`, after `--`. For `join`, pair this machine first.

    \b
    edgepp service install serve -- -m llama-3.2-1b-4bit --lan
    edgepp service install join -- --memory 8GB
    edgepp service install join --print

    On macOS 15 and newer, an agent may reach other machines only once you allow edgepp the local network; the agent
    runs while you are logged in at the screen. A daemon runs from the start of the Mac, and needs no such permission.
    """
    from edgepp.ui import service as ui

    _check_options(role, options)
    if only_print:
        ui.show_file(role, options, daemon=daemon, as_json=as_json)
    else:
        ui.install(role, options, daemon=daemon, linger=linger, as_json=as_json)


def _check_options(role: Role, options: tuple[str, ...]) -> None:
    """Check the options of the service by reading them as its command will.

    Raises:
        UsageError: the options contain a pairing code, which is void when the service starts again, or are not valid.
    """
    from edgepp.cli.serve_join import join, serve

    command = serve if role == "serve" else join
    with command.make_context(f"edgepp {role}", list(options)) as context:
        if context.params.get("code") is not None:
            raise UsageError(
                "a code is good for one start only",
                "run `edgepp join CODE` once, stop it by Ctrl-C, and install the service without the code",
            )


@service.command("status")
@DAEMON
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(*, daemon: bool, as_json: bool) -> None:
    """Show whether the service is installed, and how it runs."""
    from edgepp.ui import service as ui

    ui.show_status(daemon=daemon, as_json=as_json)


@service.command("logs")
@click.option("-n", "--lines", type=click.IntRange(0, 1_000_000), default=100, help="Lines to show.  [default: 100]")
@click.option("-f", "--follow", is_flag=True, help="Show further output as it comes, until Ctrl-C.")
@DAEMON
def logs(lines: int, *, follow: bool, daemon: bool) -> None:
    """Show what the service has printed."""
    from edgepp.ui import service as ui

    ui.show_logs(lines, follow=follow, daemon=daemon)


@service.command("remove")
@DAEMON
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def remove(*, daemon: bool, as_json: bool) -> None:
    """Stop the service and remove it; the key, the cluster and the models of this machine stay."""
    from edgepp.ui import service as ui

    ui.remove(daemon=daemon, as_json=as_json)
