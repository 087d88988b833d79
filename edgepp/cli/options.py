"""What several commands share."""

from __future__ import annotations

import signal

import click

SPECULATE_HELP = (
    "Guess tokens ahead, so that one trip verifies several: from the text so far (lookup), by a small model (its name),"
    " or off. It never changes an answer, and stops where it does not pay."
)
MODEL_HELP = "A card name (see `edgepp models list`), a hub repository (org/name), or a folder in mlx-lm format."
KV_BITS = click.Choice(["8", "4"])
KV_BITS_HELP = "Keep keys and values in so many bits: room for longer and more conversations, a little less accurate."
BACKENDS = click.Choice(["auto", "mlx", "onnx"])


class Group(click.Group):
    """Shows commands in the order in which a newcomer needs them."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """The commands' names."""
        return list(self.commands)


def stop_on_terminate() -> None:
    """Let SIGTERM end a command as Ctrl-C does, so that it cleans up."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
