"""`edgepp version` and `edgepp completion`."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def version(*, as_json: bool) -> None:
    """Show versions: edgepp, protocol, Python, system and backends.

    Machines of one cluster need the same version of edgepp, up to the last number, and the same protocol.
    """
    from edgepp.ui.version import show_version

    show_version(as_json=as_json)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script for the completion of a shell.

    The shell then completes commands, options and names of models.

    \b
    Bash 4.4 or newer, with the package bash-completion:
        mkdir -p ~/.local/share/bash-completion/completions
        edgepp completion bash > ~/.local/share/bash-completion/completions/edgepp
    Zsh, in ~/.zshrc after compinit:
        eval "$(edgepp completion zsh)"
    Fish:
        edgepp completion fish > ~/.config/fish/completions/edgepp.fish
    """
    from edgepp.ui.version import completion_script

    click.echo(completion_script(shell, context.find_root().command))
