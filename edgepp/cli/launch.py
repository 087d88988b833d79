"""`edgepp launch`: a client of an API with the settings for this cluster."""

from __future__ import annotations

import click

from edgepp.errors import UsageError

_NAMES = ("claude", "codex", "opencode", "open-webui", "zed", "llm")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("client", type=click.Choice(_NAMES))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--url", help="URL of the HTTP server, like http://127.0.0.1:11434.  [default: that of `edgepp serve` here]"
)
@click.option("--print", "as_print", is_flag=True, help="Print environment and command instead of starting the client.")
@click.option("--write", is_flag=True, help="Write the settings into the client's own file.")
@click.option("--undo", is_flag=True, help="Take back what --write has written.")
def launch(
    client: str, arguments: tuple[str, ...], *, url: str | None, as_print: bool, write: bool, undo: bool
) -> None:
    """Start a coding agent or chat client on the cluster.

    CLIENT starts with the settings for this cluster, and with ARGUMENTS, which are options and words for CLIENT. No
    file of the client is changed unless --write is given. An API key is taken from the environment variable
    EDGEPP_API_KEY.

    \b
    A coding agent, and one question:
        edgepp launch claude
        edgepp launch codex exec "Explain this folder."
        edgepp launch llm "Why is the sky blue?"
    """
    from edgepp.ui.launch import run

    if as_print + write + undo > 1:
        raise UsageError("--print, --write and --undo exclude each other", "give one of them")
    if (write or undo) and arguments:
        raise UsageError("--write and --undo start nothing, so they take no arguments", "leave the arguments out")
    if undo:
        run.undo(client)
    elif write:
        run.write(client, url)
    elif as_print:
        run.print_settings(client, url, arguments)
    else:
        run.start(client, url, arguments)
