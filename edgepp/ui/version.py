"""`edgepp version` and `edgepp completion`: installed versions, and the shell's completion script."""

from __future__ import annotations

import platform
import sys
from typing import Any

import click

import edgepp
from edgepp.benchmark.machine import installed_commit, library_versions
from edgepp.ui.screen import say, say_json
from edgepp.wire.messages import VERSION as PROTOCOL

_BACKENDS = ("mlx", "mlx-lm", "onnxruntime")


def facts() -> dict[str, Any]:
    """Installed versions, as JSON values.

    ``commit`` is None for an installed release, which its version identifies; ``backends`` maps a library to its
    version, None where it is not installed.
    """
    versions = library_versions()
    return {
        "version": edgepp.__version__,
        "commit": installed_commit(),
        "protocol": PROTOCOL,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": {
            "system": platform.system(),
            "release": platform.mac_ver()[0] or platform.release(),
            "machine": platform.machine(),
            "libc": " ".join(platform.libc_ver()).strip() or None,
        },
        "backends": {name: versions.get(name) for name in _BACKENDS},
    }


def show_version(*, as_json: bool) -> None:
    """Print the installed versions."""
    found = facts()
    if as_json:
        say_json(found)
        return
    system = found["platform"]
    commit = f", commit {found['commit']}" if found["commit"] else ""
    say(f"edgepp {found['version']}{commit}, protocol {found['protocol']}")
    say(f"Python {found['python']}, {system['system']} {system['release']} {system['machine']}")
    say(", ".join(f"{name} {version or 'missing'}" for name, version in found["backends"].items()))


def completion_script(shell: str, command: click.Command) -> str:
    """The script that makes ``shell`` (bash, zsh or fish) complete the subcommands and options of ``command``.

    Raises:
        LookupError: there is no completion for ``shell``.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise LookupError(f"click completes nothing for {shell}")
    return kind(command, {}, "edgepp", "_EDGEPP_COMPLETE").source()
